"""Penalties and bans: Hugging Face's, token by token and in whole searches."""

from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from searching import FAMILIES, MOST, from_hugging_face, sources, tensors
from tiny import lively
from torch import Tensor
from transformers import NoRepeatNGramLogitsProcessor, RepetitionPenaltyLogitsProcessor

from lightning_modules.decoding import Decoding, decode
from lightning_modules.interop.huggingface import to_hugging_face
from lightning_modules.search import beam_search, sampling
from lightning_modules.search.restraints import restrained

VOCAB = 9


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 14), st.integers(0, 4), st.sampled_from([0.5, 1.0, 1.3]))
def test_scores_are_hugging_faces(seed: int, length: int, size: int, penalty: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    score = torch.randn(2, 3, VOCAB, generator=generator)
    written = torch.randint(VOCAB, (2, 3, length), generator=generator)
    expected = score.flatten(0, 1)
    if penalty != 1.0:
        expected = RepetitionPenaltyLogitsProcessor(penalty)(written.flatten(0, 1), expected)
    if size:
        expected = NoRepeatNGramLogitsProcessor(size)(written.flatten(0, 1), expected)
    found = restrained(score, written, Decoding(10, repetition_penalty=penalty, no_repeat_ngram=size))
    assert torch.equal(found.flatten(0, 1), expected)


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize(("family", "changes"), FAMILIES[:2])
def test_whole_texts_are_hugging_faces(family: str, changes: dict[str, Any], beams: int) -> None:
    """Of encoder–decoders: in decoders Hugging Face counts the prompt as written, where answers may stand."""
    ours, texts = lively(**changes), sources(60)
    theirs = to_hugging_face(ours)
    plain = decode(ours, *tensors(texts, ours), Decoding(MOST, beams))
    for ours_says, theirs_says in (
        ({"repetition_penalty": 1.4}, {"repetition_penalty": 1.4}),
        ({"no_repeat_ngram": 2}, {"no_repeat_ngram_size": 2}),
        ({"repetition_penalty": 1.2, "no_repeat_ngram": 3}, {"repetition_penalty": 1.2, "no_repeat_ngram_size": 3}),
    ):
        found = decode(ours, *tensors(texts, ours), Decoding(MOST, beams, **ours_says))  # type: ignore[arg-type]
        expected = from_hugging_face(theirs, texts, ours, num_beams=beams, **theirs_says)
        assert [answers[0].ids for answers in found] == [answers[0][0] for answers in expected]
        assert [answers[0].ids for answers in found] != [answers[0].ids for answers in plain]


@pytest.mark.parametrize("search", [sampling, beam_search], ids=["sampling", "beam search"])
def test_where_nothing_restrains_nothing_of_it_is_called(search: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, texts, beams = lively(), sources(3), 4 if search is beam_search else 1
    calls: list[int] = []  # tokens written before each

    def counted(score_BWV: Tensor, written_BWT: Tensor, decoding: Decoding) -> Tensor:
        calls.append(written_BWT.shape[-1])
        return restrained(score_BWV, written_BWT, decoding)

    monkeypatch.setattr(search, "restrained", counted)
    decode(ours, *tensors(texts, ours), Decoding(5, beams))
    assert calls == []
    decode(ours, *tensors(texts, ours), Decoding(5, beams, no_repeat_ngram=3))
    assert calls[:2] == [1, 2]
