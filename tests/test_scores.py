"""Scores equal the reference programs', intervals cover, and degenerate inputs give numbers or one clear line."""

import random
from typing import Any

import numpy as np
import pytest
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from lightning_modules.errors import PipelineError
from stages.scores import normalized_answer, record_scores, score_task
from stages.tasks import TASKS

WORDS = ["the", "a", "service", "lists", "all", "of", "your", "open", "tables", "and", "returns", "their", "names"]


def corpus(records: int, noise: float, seed: int) -> tuple[list[str], list[str]]:
    """References, and predictions in which a share `noise` of the words is another word."""
    draw = random.Random(seed)
    references = [" ".join(draw.choices(WORDS, k=draw.randint(4, 12))) for _ in range(records)]
    predictions = [
        " ".join(draw.choice(WORDS) if draw.random() < noise else word for word in reference.split())
        for reference in references
    ]
    return references, predictions


def scored(metric: str, references: list[str], systems: dict[str, list[str]], samples: int = 200, seed: int = 1) -> Any:
    return score_task([metric], references, systems, samples, seed)["metrics"][metric]


@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0])
def test_bleu_and_chrf_are_sacrebleus(noise: float) -> None:
    references, predictions = corpus(60, noise, seed=3)
    bleu = scored("bleu", references, {"a": predictions})["a"]["score"]
    chrf = scored("chrf", references, {"a": predictions})["a"]["score"]
    assert bleu == pytest.approx(BLEU().corpus_score(predictions, [references]).score, abs=1e-4)
    assert chrf == pytest.approx(CHRF().corpus_score(predictions, [references]).score, abs=1e-4)


@pytest.mark.parametrize("metric", ["bleu", "chrf", "rougeL", "f1"])
def test_the_interval_is_that_of_scoring_resampled_corpora_one_by_one(metric: str) -> None:
    references, predictions = corpus(25, 0.4, seed=5)
    draws = np.random.default_rng(9)
    scores = []
    for _ in range(60):
        rows = draws.integers(25, size=25)
        resample = {"a": [predictions[row] for row in rows]}
        scores.append(scored(metric, [references[row] for row in rows], resample, samples=1)["a"]["score"])
    expected = np.percentile(scores, [2.5, 97.5])
    ours = scored(metric, references, {"a": predictions}, samples=60, seed=9)["a"]
    assert [ours["low"], ours["high"]] == pytest.approx(expected, abs=1e-3)


def test_nineteen_in_twenty_intervals_cover_the_truth() -> None:
    draws = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        right = draws.random(100) < 0.3
        interval = scored("exact_match", ["yes"] * 100, {"a": ["yes" if r else "no" for r in right]}, 300, trial)["a"]
        covered += interval["low"] <= 30 <= interval["high"]
    assert 0.88 <= covered / 200 <= 0.99


def test_the_difference_is_paired() -> None:
    references, good = corpus(200, 0.2, seed=7)
    slightly_worse = [*good[:180], *("" for _ in good[180:])]
    table = scored("chrf", references, {"pretrained": good, "scratch": slightly_worse})
    difference, alone = table["difference"], table["pretrained"]
    assert difference["score"] == pytest.approx(alone["score"] - table["scratch"]["score"], abs=1e-3)
    assert 0 < difference["low"] < difference["score"] < difference["high"]
    same = scored("chrf", references, {"pretrained": good, "scratch": list(good)})["difference"]
    assert same == {"score": 0.0, "low": 0.0, "high": 0.0}


def test_equal_seeds_give_equal_intervals() -> None:
    references, predictions = corpus(50, 0.5, seed=11)
    first, again = (scored("bleu", references, {"a": predictions}, seed=4) for _ in range(2))
    assert first == again
    assert first != scored("bleu", references, {"a": predictions}, seed=5)


@pytest.mark.parametrize("metric", sorted({metric for task in TASKS.values() for metric in task.metrics}))
def test_every_metric_of_the_tasks_goes_from_nothing_to_a_hundred(metric: str) -> None:
    references, _ = corpus(20, 0, seed=13)
    table = scored(metric, references, {"pretrained": references, "scratch": [""] * 20})
    assert table["pretrained"]["score"] == pytest.approx(100, abs=0.01)
    assert table["scratch"] == {"score": 0.0, "low": 0.0, "high": 0.0}
    assert table["difference"]["score"] == pytest.approx(100, abs=0.01)
    assert score_task([metric], references, {}, 10, 1)["signatures"][metric]


def test_squads_own_examples() -> None:
    assert normalized_answer("The  Eiffel-Tower, a tower!") == "eiffeltower tower"
    pairs = [("the cat sat", "A cat."), ("cats", "dogs"), ("", "x"), ("the", "a"), ("Denver Broncos", "denver broncos")]
    predictions, references = [list(side) for side in zip(*pairs, strict=True)]
    assert record_scores("f1", references, predictions) == pytest.approx([200 / 3, 0, 0, 100, 100])
    assert record_scores("exact_match", references, predictions) == [0, 0, 0, 100, 100]


def test_rouge_is_counted_by_hand() -> None:
    # In common: 3 of 4 and 3 of 3 words, no pair, a subsequence of 2; and without stemming "lists" is not "list".
    found = {
        m: record_scores(m, ["list open tables"], ["all list tables open"])[0] for m in ("rouge1", "rouge2", "rougeL")
    }
    assert found["rouge1"] == pytest.approx(100 * 2 * 0.75 * 1 / 1.75)
    assert found["rouge2"] == 0
    assert found["rougeL"] == pytest.approx(100 * 2 * 0.5 * (2 / 3) / (0.5 + 2 / 3))
    assert record_scores("rouge1", ["lists"], ["list"]) == [0]


def test_wrong_inputs_are_one_line() -> None:
    with pytest.raises(PipelineError, match="no test records"):
        score_task(["bleu"], [], {"a": []}, 10, 1)
    with pytest.raises(PipelineError, match="a has 1 predictions for 2 references"):
        score_task(["bleu"], ["x", "y"], {"a": ["x"]}, 10, 1)
    with pytest.raises(PipelineError, match="unknown metric 'blue'"):
        score_task(["blue"], ["x"], {"a": ["x"]}, 10, 1)
