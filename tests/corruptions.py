"""Objectives to test, with tables of their own, and rows of ids for them."""

import numpy as np
from tiny import EOS, FIRST_SENTINEL

from lightning_modules.objectives import Denoising, MaskedLM, SpanCorruption
from lightning_modules.spans import Ids

PAD, MASK, FIRST_REGULAR = 0, 4, FIRST_SENTINEL + 64
IDS = 60_100  # above all ids of these tests
WORD_STARTS = np.random.default_rng(0).random(IDS) < 0.5
WORD_STARTS[:FIRST_REGULAR] = False  # objectives know by themselves that special tokens are no part of words
SENTENCE_ENDS = np.arange(IDS) % 10 == 7


def corruption(rate: float, mean: float, sentinels: int = 10_000) -> SpanCorruption:
    return SpanCorruption(rate, mean, FIRST_SENTINEL, sentinels, EOS)


def masked(rate: float, whole_words: bool = False, ids: int = IDS) -> MaskedLM:
    return MaskedLM(rate, MASK, PAD, FIRST_REGULAR, ids, WORD_STARTS if whole_words else None)


def denoising(rate: float, mean: float) -> Denoising:
    return Denoising(rate, mean, MASK, PAD, EOS, SENTENCE_ENDS)


def rows(length: int, count: int, seed: int, separators: float = 0.0) -> Ids:
    """Ids that are no special token of these tests, and a share of </s>."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random((count, length)) < separators, EOS, rng.integers(100, 60_100, (count, length)))
