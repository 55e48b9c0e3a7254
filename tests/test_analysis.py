"""What one score hides, against sorting by hand, torchmetrics and scipy."""

import math
import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix
from test_metrics import corpus
from torchmetrics.functional.classification import binary_calibration_error

from stages.analysis import (
    CLASSES,
    OTHER,
    buckets,
    calibration,
    confusion,
    likelihood,
    score_by,
    score_by_answer,
    words_before_answer,
)
from stages.scores import score_task


@settings(max_examples=60)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=80))
def test_buckets_part_the_records_by_their_values(values: list[int]) -> None:
    found = buckets(values)
    assert sorted(n for bucket in found for n in bucket.records) == list(range(len(values)))
    assert len(found) <= 4
    for bucket in found:
        assert (bucket.low, bucket.high) == (
            min(values[n] for n in bucket.records),
            max(values[n] for n in bucket.records),
        )
    for shorter, longer in pairwise(found):
        assert shorter.high < longer.low


def test_buckets_of_different_values_are_quarters() -> None:
    values = random.Random(1).sample(range(1000), 100)
    assert [len(bucket.records) for bucket in buckets(values)] == [25, 25, 25, 25]


def test_scores_by_a_value_are_those_of_the_records_that_have_it() -> None:
    references, good = corpus(40, 0.2, seed=1)
    systems = {"pretrained": good, "scratch": corpus(40, 0.7, seed=1)[1]}
    values = [None if n % 5 == 0 else n % 3 for n in range(40)]
    found = score_by(values, "chrf", references, systems, 100, 2)
    assert [(one["low"], one["high"]) for one in found] == [(0, 0), (1, 1), (2, 2)]
    assert sum(one["records"] for one in found) == 32
    for one in found:
        group = [n for n, value in enumerate(values) if value == one["low"]]
        texts = {name: [answers[n] for n in group] for name, answers in systems.items()}
        alone = score_task(["chrf"], [references[n] for n in group], texts, 100, 2)["metrics"]["chrf"]
        assert all(one[system] == alone[system] for system in systems)
    assert score_by([None] * 40, "chrf", references, systems, 100, 2) == []


def test_questions_without_an_answer_are_scored_apart() -> None:
    references = ["one", "", "two", "three", ""]
    answers = {"pretrained": ["one", "", "x", "", "y"], "scratch": [""] * 5}
    found = score_by_answer("exact_match", references, answers, 100, 1)
    assert [found[kind]["records"] for kind in ("answer", "no_answer")] == [3, 2]
    assert found["answer"]["pretrained"]["score"] == pytest.approx(100 / 3, abs=1e-3)
    assert found["answer"]["scratch"]["score"] == 0
    assert (found["no_answer"]["pretrained"]["score"], found["no_answer"]["scratch"]["score"]) == (50, 100)
    assert score_by_answer("exact_match", references[2:4], {"pretrained": ["two", "x"]}, 100, 1) == {}


def test_evidence_is_looked_for_behind_the_question() -> None:
    source = "question: Is Paris big? context: One town is Rome. Another is Paris, in France."
    assert words_before_answer(source, "Paris", "") == 6
    assert words_before_answer(source, "One town", "") == 0
    assert words_before_answer(source, "question", "") is None
    assert words_before_answer(source, "", "") is None
    assert words_before_answer("no mark of a context", "context", "") == 4


def test_where_the_data_says_where_the_answer_stands_its_distance_is_from_there() -> None:
    context = "is it this? Yes, this is it, is it not?"
    source = f"question: what is it? context: {context}"
    assert words_before_answer(source, "is", "") == 0  # the first place
    assert words_before_answer(source, "is", str(context.index("is it,"))) == 5
    assert words_before_answer(source, "is", str(context.rindex("is"))) == 7
    assert words_before_answer(source, "is", "3") == 0  # it does not stand there
    assert words_before_answer(source, "no", "3") == 9


def test_likelihoods_compare_tokenizers_by_bytes() -> None:
    draws = np.random.default_rng(1)
    sizes = draws.integers(5, 40, 50).astype(float)
    fine = np.stack([sizes * math.log(2) * draws.uniform(1.0, 1.2, 50), sizes, sizes], axis=1)  # a token a byte
    coarse = fine * [1.0, 0.25, 1.0]  # the same nats in a quarter of the tokens
    found = likelihood(fine, coarse, 200, 1)
    assert found["perplexity"]["pretrained"]["score"] == pytest.approx(
        math.exp(fine[:, 0].sum() / sizes.sum()), abs=1e-3
    )
    assert found["perplexity"]["scratch"]["score"] > 15
    bits = found["bits_per_byte"]
    assert bits["pretrained"] == bits["scratch"]
    assert 1.0 < bits["pretrained"]["low"] < bits["pretrained"]["score"] < bits["pretrained"]["high"] < 1.2
    assert bits["difference"] == {"score": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(1, 999), st.booleans()), min_size=1, max_size=60))
def test_the_calibration_error_is_torchmetrics(pairs: list[tuple[float, bool]]) -> None:
    # On a bound the one takes a probability for the lower bin, the other for the upper.
    probabilities, right = [(n + (n % 100 == 0)) / 1000 for n, _ in pairs], [right for _, right in pairs]
    found = calibration(probabilities, right)
    wanted = binary_calibration_error(torch.tensor(probabilities), torch.tensor(right).long(), n_bins=10, norm="l1")
    assert found["error"] == pytest.approx(float(wanted), abs=1e-4)
    assert sum(one["records"] for one in found["bins"]) == len(pairs)
    for one in found["bins"]:
        share = binomtest(round(one["right"] * one["records"]), one["records"]).proportion_ci(0.95, method="wilson")
        assert (one["right_low"], one["right_high"]) == pytest.approx((share.low, share.high), abs=1e-4)


def test_sure_and_right_is_calibrated_and_sure_and_wrong_is_not() -> None:
    assert calibration([1.0, 1.0, 0.0], [True, True, False])["error"] == 0
    assert calibration([1.0, 1.0], [False, False])["error"] == 1
    assert calibration([0.5] * 100, [n % 2 == 0 for n in range(100)])["error"] == pytest.approx(0)


def test_confusion_is_scikit_learns_and_what_is_rare_or_no_label_shares_a_place() -> None:
    draw = random.Random(1)
    references = draw.choices(["a", "b", "c"], k=50)
    predictions = draw.choices(["a", "b", "c"], k=50)
    found = confusion(references, predictions)
    assert found["labels"] == ["a", "b", "c"]
    assert found["counts"] == confusion_matrix(references, predictions).tolist()
    found = confusion([*references, "a"], [*predictions, "none of them"])
    assert found["labels"] == ["a", "b", "c", OTHER]
    assert found["counts"][0][3] == 1
    many = [f"label {n:02}" for n in range(CLASSES + 5)]
    found = confusion(many + many[:CLASSES], many + many[:CLASSES])
    assert found["labels"] == [*many[:CLASSES], OTHER]
    assert found["counts"][-1][-1] == 5


def test_white_space_around_a_label_makes_no_other_label() -> None:
    found = confusion(["a ", "b", "a"], ["a", "\tb\n", "b"])
    assert found == {"labels": ["a", "b"], "counts": [[1, 1], [0, 1]]}
