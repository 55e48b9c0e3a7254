"""Tokens a second that each pre-training objective makes batches of: `python -m benchmarks.objectives`. One process,
some ten seconds. Objectives take turns, so that a busy moment of the machine meets all of them; prints medians.

Reads data/tokens and data/tokenizer where they exist, else some hundred sentences of Python's documentation.
"""

import argparse
import importlib
import statistics
import time
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from lightning_modules.model_folder import load_tokenizer, special_id
from lightning_modules.named_objectives import make_objective
from lightning_modules.objectives import Objective
from lightning_modules.spans import Ids
from lightning_modules.token_store import TokenStore

TOKENS, TOKENIZER = Path("data/tokens/pretraining/train"), Path("data/tokenizer")
SHAPES = [(16, 128), (64, 128), (16, 512), (64, 512)]  # rows of a batch, tokens of a row
ROUNDS, SECONDS = 9, 0.02  # of measuring one objective in one round
# name → (objective, corruption rate, mean span length, whole words): the papers' numbers
SETTINGS = {
    "causal_lm": ("causal_lm", 0.15, 3.0, False),
    "prefix_lm": ("prefix_lm", 0.15, 3.0, False),
    "masked_lm": ("masked_lm", 0.15, 3.0, False),
    "masked_lm, whole words": ("masked_lm", 0.15, 3.0, True),
    "span_corruption": ("span_corruption", 0.15, 3.0, False),
    "denoising": ("denoising", 0.3, 3.0, False),
}


def text(tokens: int) -> tuple[Ids, Tokenizer, str]:
    """`tokens` ids of documents joined by </s>, again where there are fewer; the tokenizer; where they are from."""
    if TOKENS.is_dir():
        store, tokenizer, origin = TokenStore(TOKENS), load_tokenizer(TOKENIZER), str(TOKENS)
        enough = int(np.searchsorted(np.cumsum(store.lengths() + 1), tokens)) + 1
        documents = [store[number] for number in range(min(len(store), enough))]
    else:
        tiny = importlib.import_module("tests.tiny")
        tokenizer, origin = tiny.tokenizer(), "Python's documentation"
        documents = [np.array(ids) for ids in tiny.encoded(tiny.sentences())]
    eos = np.array([special_id(tokenizer, "</s>")])
    joined = np.concatenate([part for document in documents for part in (document, eos)])
    return np.resize(joined, tokens).astype(np.int64), tokenizer, origin


def tokens_per_second(objective: Objective, tokens_BL: Ids, rng: np.random.Generator) -> float:
    """Of as many calls as fill SECONDS."""
    calls, began = 0, time.perf_counter()
    while (took := time.perf_counter() - began) < SECONDS:
        objective(tokens_BL, rng)
        calls += 1
    return calls * tokens_BL.size / took


def main() -> None:
    """Prints the table."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    ids, tokenizer, origin = text(max(rows * length for rows, length in SHAPES))
    objectives = {
        label: make_objective(
            {name: 1.0}, corruption_rate=rate, mean_span_length=mean, whole_words=whole, tokenizer=tokenizer
        )
        for label, (name, rate, mean, whole) in SETTINGS.items()
    }
    rng = np.random.default_rng(0)
    measured: dict[tuple[str, int, int], list[float]] = {}
    for _ in range(ROUNDS):
        for rows, length in SHAPES:
            tokens_BL = ids[: rows * length].reshape(rows, length)
            for label, objective in objectives.items():
                measured.setdefault((label, rows, length), []).append(tokens_per_second(objective, tokens_BL, rng))
    print(f"million tokens a second, median of {ROUNDS} rounds; text: {origin}; the first two copy nothing")
    print(f"{'':24}" + "".join(f"{f'{rows} × {length}':>12}" for rows, length in SHAPES))
    for label in objectives:
        medians = [statistics.median(measured[label, rows, length]) / 1e6 for rows, length in SHAPES]
        print(f"{label:24}" + "".join(f"{median:12.1f}" for median in medians))


if __name__ == "__main__":
    main()
