"""Random cuts, spans, words and orders: against loops that do the same one at a time, and evenly spread."""

from collections import Counter
from itertools import combinations, pairwise, permutations
from math import exp, factorial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_modules.spans import (
    choose_words,
    hidden_tokens,
    poisson_spans,
    random_parts,
    shuffle_sentences,
)


@pytest.mark.parametrize(("length", "rate", "hidden"), [(1, 0.15, 1), (2, 0.9, 1), (3, 0.01, 1), (20, 0.3, 6)])
def test_something_is_hidden_and_something_left_to_see(length: int, rate: float, hidden: int) -> None:
    assert hidden_tokens(length, rate) == hidden


@pytest.mark.parametrize(("total", "parts"), [(0, 1), (1, 1), (2, 1), (2, 2), (5, 2), (6, 3), (7, 6), (7, 7)])
def test_every_partition_is_reached_about_equally_often(total: int, parts: int) -> None:
    cuts = combinations(range(1, total), parts - 1)
    possible = {tuple(np.diff([0, *cut, total]).tolist()) for cut in cuts}
    drawn = 400 * len(possible)
    got = random_parts(np.random.default_rng(0), drawn, total, parts)
    found, counts = np.unique(got, axis=0, return_counts=True)
    assert {tuple(row) for row in found.tolist()} == possible
    assert counts.min() > 300
    assert counts.max() < 500


def spans_one_by_one(rng: np.random.Generator, hidden: int, mean: float) -> list[int]:
    """What the docstring promises, draw after draw."""
    lengths: list[int] = []
    while sum(lengths) < hidden:
        lengths.append(min(int(rng.poisson(mean)), hidden - sum(lengths)))
    positive = [length for length in lengths if length]
    return positive + [0] * (min(len(lengths), hidden) - len(positive))


@pytest.mark.parametrize(("hidden", "mean"), [(1, 3.0), (2, 1.0), (4, 1.5), (6, 3.0)])
def test_spans_are_distributed_as_poisson_draws_one_by_one(hidden: int, mean: float) -> None:
    count = 20_000
    lengths, spans = poisson_spans(np.random.default_rng(0), count, hidden, mean)
    drawn = Counter(tuple(row[:n]) for row, n in zip(lengths.tolist(), spans[:, 0].tolist(), strict=True))
    rng = np.random.default_rng(1)
    expected = Counter(tuple(spans_one_by_one(rng, hidden, mean)) for _ in range(count))
    for spans_of_row in drawn.keys() | expected.keys():
        one, other = drawn[spans_of_row], expected[spans_of_row]
        assert abs(one - other) <= 4.5 * (one + other) ** 0.5  # the difference of two Poisson counts


@given(hidden=st.integers(1, 60), mean=st.floats(1, 12), rows=st.integers(1, 5), seed=st.integers(0, 2**32))
def test_spans_hide_exactly_as_much_as_asked(hidden: int, mean: float, rows: int, seed: int) -> None:
    lengths, spans = poisson_spans(np.random.default_rng(seed), rows, hidden, mean)
    assert lengths.shape == (rows, hidden)
    assert lengths.dtype == spans.dtype == np.int64
    assert (lengths.sum(axis=1) == hidden).all()
    for row, number in zip(lengths, spans[:, 0], strict=True):
        positive = int((row > 0).sum())
        assert (row[:positive] > 0).all()
        assert positive <= number <= hidden


def test_in_long_rows_spans_are_as_long_as_asked_but_for_the_one_that_is_cut() -> None:
    hidden, mean, rows = 600, 3.0, 500
    lengths, spans = poisson_spans(np.random.default_rng(0), rows, hidden, mean)
    # The number of spans has variance hidden / mean² (a sum of `hidden` arrival times); ±4 standard errors.
    error = 4 * (hidden / mean**2 / rows) ** 0.5
    assert spans.mean() == pytest.approx(hidden / mean + 0.5, abs=error)
    total = int(spans.sum())
    zeros = total - int((lengths > 0).sum())
    for length in range(8):
        count = zeros if length == 0 else int((lengths == length).sum())
        expected = total * exp(-mean) * mean**length / factorial(length)
        # A row's last span is cut, which moves at most one count a row; on average far less than one in five.
        assert count == pytest.approx(expected, abs=5 * expected**0.5 + rows / 5)


def test_all_orders_of_sentences_are_equally_likely_and_a_run_of_ends_is_one() -> None:
    # 7 ends a sentence: [1 2 7 7] [3 7] [4 5], the last without an end.
    row = np.array([1, 2, 7, 7, 3, 7, 4, 5])
    tokens = np.tile(row, (6000, 1))
    shuffled = shuffle_sentences(np.random.default_rng(0), tokens, tokens == 7)
    found = Counter(map(tuple, shuffled.tolist()))
    parts = ([1, 2, 7, 7], [3, 7], [4, 5])
    assert set(found) == {tuple(token for part in order for token in part) for order in permutations(parts)}
    assert min(found.values()) > 1000 - 5 * 29  # ±5 standard deviations of a count with p = 1/6
    assert max(found.values()) < 1000 + 5 * 29


def words_one_by_one(order: list[int], sizes: list[int], avoided: set[int], budget: int) -> set[int]:
    """The rule of BERT's code, and one word where it would choose none."""
    chosen: set[int] = set()
    real = [word for word in order if word < len(sizes)]
    for word in real:
        if word not in avoided and sum(sizes[w] for w in chosen) + sizes[word] <= budget:
            chosen.add(word)
    return chosen or {next((word for word in real if word not in avoided), real[0])}


@given(data=st.data(), rows=st.integers(1, 4), length=st.integers(1, 40), seed=st.integers(0, 2**32))
def test_words_are_chosen_as_one_by_one(data: st.DataObject, rows: int, length: int, seed: int) -> None:
    chance = data.draw(st.sampled_from([0.05, 0.3, 0.7, 1.0]))
    budget = data.draw(st.integers(1, length))
    rng = np.random.default_rng(seed)
    avoided = rng.random((rows, length)) < data.draw(st.sampled_from([0.0, 0.2, 1.0]))
    starts = rng.random((rows, length)) < chance
    starts[:, 0] = True
    chosen = choose_words(np.random.default_rng(seed), starts, avoided, budget)
    orders = np.argsort(np.random.default_rng(seed).random((rows, length)), axis=1)
    for row in range(rows):
        begins = [*np.flatnonzero(starts[row]).tolist(), length]
        words = [range(a, b) for a, b in pairwise(begins)]
        bad = {number for number, word in enumerate(words) if any(avoided[row, place] for place in word)}
        expected = words_one_by_one(orders[row].tolist(), list(map(len, words)), bad, budget)
        assert set(np.flatnonzero(chosen[row]).tolist()) == {place for word in expected for place in words[word]}
