"""Metrics equal the reference programs', and degenerate texts give numbers."""

import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER
from sklearn.metrics import accuracy_score, f1_score

from lightning_modules.errors import PipelineError
from stages.bootstrap import scored
from stages.metrics import metric, normalized_answer
from stages.tasks import TASKS

WORDS = ["the", "a", "service", "lists", "all", "of", "your", "open", "tables", "and", "returns", "their", "names"]
LABELS = ["create", "delete", "list", "describe"]
DIVERSITY = ("distinct1", "distinct2")  # of what is written, whatever the references are


def corpus(records: int, noise: float, seed: int) -> tuple[list[str], list[str]]:
    """References, and predictions in which a share `noise` of the words is another word."""
    draw = random.Random(seed)
    references = [" ".join(draw.choices(WORDS, k=draw.randint(4, 12))) for _ in range(records)]
    predictions = [
        " ".join(draw.choice(WORDS) if draw.random() < noise else word for word in reference.split())
        for reference in references
    ]
    return references, predictions


def score(name: str, references: list[str], predictions: list[str]) -> float:
    return metric(name).score(metric(name).statistics(predictions, references).sum(0))


@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("name", "library"), [("bleu", BLEU), ("chrf", CHRF), ("ter", TER)])
def test_bleu_chrf_and_ter_are_sacrebleus(name: str, library: Any, noise: float) -> None:
    references, predictions = corpus(60, noise, seed=3)
    theirs = library()
    assert score(name, references, predictions) == pytest.approx(theirs.corpus_score(predictions, [references]).score)
    assert metric(name).signature.endswith(str(theirs.get_signature()).split("|")[-1])  # the library's version


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from([*LABELS, "no label"])), min_size=1, max_size=30))
def test_accuracy_and_macro_f1_are_scikit_learns(pairs: list[tuple[str, str]]) -> None:
    references, predictions = [list(side) for side in zip(*pairs, strict=True)]
    own = sorted(set(references))
    expected = f1_score(references, predictions, labels=own, average="macro", zero_division=0)
    assert score("macro_f1", references, predictions) == pytest.approx(100 * expected)
    assert score("accuracy", references, predictions) == pytest.approx(100 * accuracy_score(references, predictions))
    assert score("macro_f1", references, [f" {text}\n" for text in predictions]) == pytest.approx(100 * expected)


@pytest.mark.parametrize("length", [1, 2])
def test_distinct_counts_different_ngrams(length: int) -> None:
    _, written = corpus(30, 0.5, seed=5)
    grams = Counter(tuple(t.split()[i : i + length]) for t in written for i in range(len(t.split()) - length + 1))
    expected = 100 * len(grams) / sum(grams.values())
    assert score(f"distinct{length}", [""] * 30, written) == pytest.approx(expected)
    assert score(f"distinct{length}", [""] * 3, ["", "one", ""]) == pytest.approx(100 if length == 1 else 0)
    assert score(f"distinct{length}", [""], ["Go on, go on."]) == pytest.approx(50 if length == 1 else 200 / 3)


def test_the_interval_of_distinct_covers_what_other_texts_of_as_many_records_give() -> None:
    """Resampling the texts themselves does not: repeated records hold the same n-grams twice."""
    vocabulary, draws = np.array([f"w{n}" for n in range(300)]), np.random.default_rng(1)
    frequency = 1 / np.arange(1, 301)

    def texts() -> list[str]:
        words = draws.choice(vocabulary, size=(60, 5), p=frequency / frequency.sum())
        return [" ".join(row) for row in words]

    truth = np.mean([score("distinct1", [""] * 60, texts()) for _ in range(300)])
    covered = 0
    for trial in range(100):
        one = metric("distinct1")
        found = scored(one.score, one.statistics(texts(), [""] * 60), 200, trial)
        covered += found["low"] <= truth <= found["high"]
    assert covered >= 89


@pytest.mark.parametrize("name", sorted({name for task in TASKS.values() for name in task.metrics} - {*DIVERSITY}))
def test_every_metric_of_the_tasks_goes_from_nothing_to_a_hundred(name: str) -> None:
    references, _ = corpus(20, 0, seed=13)
    worst, best = (100, 0) if name == "ter" else (0, 100)
    assert score(name, references, references) == pytest.approx(best, abs=0.01)
    assert score(name, references, [""] * 20) == worst
    assert metric(name).signature


def test_squads_own_examples() -> None:
    assert normalized_answer("The  Eiffel-Tower, a tower!") == "eiffeltower tower"
    pairs = [("the cat sat", "A cat."), ("cats", "dogs"), ("", "x"), ("the", "a"), ("Denver Broncos", "denver broncos")]
    singly = [(score("f1", [wanted], [found]), score("exact_match", [wanted], [found])) for found, wanted in pairs]
    assert [f1 for f1, _ in singly] == pytest.approx([200 / 3, 0, 0, 100, 100])
    assert [exact for _, exact in singly] == [0, 0, 0, 100, 100]


def test_rouge_is_counted_by_hand() -> None:
    # In common: 3 of 4 and 3 of 3 words, no pair, a subsequence of 2; and without stemming "lists" is not "list".
    names = ("rouge1", "rouge2", "rougeL")
    found = {name: score(name, ["list open tables"], ["all list tables open"]) for name in names}
    assert found["rouge1"] == pytest.approx(100 * 2 * 0.75 * 1 / 1.75)
    assert found["rouge2"] == 0
    assert found["rougeL"] == pytest.approx(100 * 2 * 0.5 * (2 / 3) / (0.5 + 2 / 3))
    assert score("rouge1", ["lists"], ["list"]) == 0


def test_an_unknown_metric_is_one_line() -> None:
    with pytest.raises(PipelineError, match=r"unknown metric 'blue': stages/metrics.py knows bleu, chrf, ter, "):
        metric("blue")
