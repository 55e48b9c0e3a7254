"""Intervals cover, and p-values are those of all swaps, of sacreBLEU, and of nothing where nothing is."""

from itertools import product

import numpy as np
import pytest
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.significance import PairedTest
from test_metrics import corpus

from stages.bootstrap import difference, scored, swap_p_value
from stages.metrics import metric


@pytest.mark.parametrize("name", ["bleu", "chrf", "ter", "rougeL", "f1", "macro_f1"])
def test_the_interval_is_that_of_scoring_resampled_corpora_one_by_one(name: str) -> None:
    references, predictions = corpus(25, 0.4, seed=5)
    references, predictions = (
        [r.split()[0] + " " + r for r in references],
        [p.split()[0] + " " + p for p in predictions],
    )
    one, draws, scores = metric(name), np.random.default_rng(9), []
    for _ in range(60):
        rows = draws.integers(25, size=25)
        drawn = one.statistics([predictions[row] for row in rows], [references[row] for row in rows])
        scores.append(one.score(drawn.sum(0)))
    ours = scored(one.score, one.statistics(predictions, references), 60, seed=9)
    assert [ours["low"], ours["high"]] == pytest.approx(np.percentile(scores, [2.5, 97.5]), abs=1e-3)


def test_nineteen_in_twenty_intervals_cover_the_truth() -> None:
    one, draws, covered = metric("exact_match"), np.random.default_rng(0), 0
    for trial in range(200):
        right = draws.random(100) < 0.3
        statistics = one.statistics(["yes" if r else "no" for r in right], ["yes"] * 100)
        interval = scored(one.score, statistics, 300, trial)
        covered += interval["low"] <= 30 <= interval["high"]
    assert 0.88 <= covered / 200 <= 0.99


@pytest.mark.parametrize("noise", [0.35, 0.6])
def test_the_p_value_is_the_share_of_all_swaps_with_as_large_a_difference(noise: float) -> None:
    references, good = corpus(10, 0.3, seed=1)
    _, bad = corpus(10, noise, seed=1)
    one = metric("chrf")
    a, b = one.statistics(good, references), one.statistics(bad, references)
    seen, as_large = abs(one.score(a.sum(0)) - one.score(b.sum(0))), 0
    for swaps in product([False, True], repeat=10):
        swap = np.array(swaps)[:, None]
        totals = [np.where(swap, *pair).sum(0) for pair in ((b, a), (a, b))]
        as_large += abs(one.score(totals[0]) - one.score(totals[1])) >= seen - 1e-9
    assert swap_p_value(one.score, a, b, 3000, seed=2) == pytest.approx(as_large / 2**10, abs=0.03)


@pytest.mark.parametrize("noise", [0.32, 0.45])
def test_the_p_value_is_sacrebleus(noise: float) -> None:
    references, good = corpus(80, 0.3, seed=7)
    _, other = corpus(80, noise, seed=8)
    other = [o if n % 2 else g for n, (o, g) in enumerate(zip(other, good, strict=True))]
    test = PairedTest([("a", good), ("b", other)], {"BLEU": BLEU(references=[references])}, None, "ar", 1000)
    theirs = test()[1]["BLEU"][1].p_value
    one = metric("bleu")
    rows = [one.statistics(texts, references) for texts in (good, other)]
    assert swap_p_value(one.score, *rows, 1000, seed=3) == pytest.approx(theirs, abs=0.05)


def test_where_there_is_no_difference_small_p_values_are_rare() -> None:
    one, draws, small = metric("accuracy"), np.random.default_rng(4), 0
    for trial in range(200):
        a, b = (np.stack([draws.random(40) < 0.5, np.ones(40)], axis=1).astype(float) for _ in range(2))
        small += swap_p_value(one.score, a, b, 200, trial) <= 0.05
    assert small <= 20


def test_the_difference_is_paired() -> None:
    references, good = corpus(200, 0.2, seed=7)
    one = metric("chrf")
    a = one.statistics(good, references)
    b = one.statistics([*good[:180], *("" for _ in good[180:])], references)
    found, alone = difference(one.score, a, b, 200, 1), [scored(one.score, rows, 200, 1) for rows in (a, b)]
    assert found["score"] == pytest.approx(alone[0]["score"] - alone[1]["score"], abs=1e-3)
    assert 0 < found["low"] < found["score"] < found["high"]
    assert found["high"] - found["low"] < alone[1]["high"] - alone[1]["low"]
    assert found["p"] == pytest.approx(1 / 201, abs=1e-5)
    assert difference(one.score, a, a, 200, 1) == {"score": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}
