"""Span corruption: what is hidden and what is shown make the row again, in the numbers asked for."""

from itertools import combinations, pairwise

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import EOS, FIRST_SENTINEL, uncorrupted

from lightning_modules.errors import PipelineError
from lightning_modules.objectives import SpanCorruption, _random_parts

Ids = npt.NDArray[np.int64]


def corruption(rate: float, mean: float, sentinels: int = 10_000) -> SpanCorruption:
    return SpanCorruption(rate, mean, FIRST_SENTINEL, sentinels, EOS)


def rows(length: int, count: int, seed: int) -> Ids:
    """Ids that no sentinel of these tests has."""
    return np.random.default_rng(seed).integers(100, 60_100, (count, length))


@given(
    length=st.integers(2, 80),
    count=st.integers(1, 5),
    rate=st.floats(0.01, 0.99),
    mean=st.floats(1, 12),
    seed=st.integers(0, 2**32),
)
def test_source_and_target_make_the_row_again(length: int, count: int, rate: float, mean: float, seed: int) -> None:
    objective, tokens = corruption(rate, mean), rows(length, count, seed)
    number, noise = objective.spans_and_noise(length)
    assert 1 <= number <= noise <= length - 1
    assert noise == min(max(round(length * rate), 1), length - 1)
    sources, targets = objective(tokens, np.random.default_rng(seed))
    assert sources.shape == (count, length - noise + number + 1)
    assert targets.shape == (count, noise + number + 1)
    for row, source, target in zip(tokens, sources, targets, strict=True):
        again, spans = uncorrupted(source, target)
        assert again == row.tolist()
        assert len(spans) == number
        assert all(spans)
        assert sum(map(len, spans)) == noise
        assert source[0] == row[0]  # the first token is never hidden
        # No two sentinels stand together: neighbouring spans would be one.
        assert all(a >= 100 or b >= 100 for a, b in pairwise(source[:-1]))


def test_the_shares_are_the_papers() -> None:
    number, noise = corruption(0.15, 3.0).spans_and_noise(256)
    assert (number, noise) == (13, 38)
    assert noise / 256 == pytest.approx(0.15, abs=0.005)
    assert noise / number == pytest.approx(3.0, abs=0.15)


def test_it_is_a_function_of_the_generator_alone() -> None:
    objective, tokens = corruption(0.3, 2.0), rows(40, 6, 0)
    one, same, other = (objective(tokens, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one[0], same[0])
    assert np.array_equal(one[1], same[1])
    assert not np.array_equal(one[0], other[0])


def test_rows_of_a_batch_are_corrupted_differently() -> None:
    sources, _ = corruption(0.3, 2.0)(np.tile(rows(40, 1, 0), (8, 1)), np.random.default_rng(0))
    assert len(np.unique(sources, axis=0)) == 8


def test_the_first_token_is_never_hidden_the_last_always_and_those_between_about_equally_often() -> None:
    """T5's own draw: seen and hidden stretches alternate, from seen to hidden."""
    objective, length, count = corruption(0.25, 2.0), 24, 6000
    tokens = np.tile(np.arange(100, 100 + length), (count, 1))
    _, targets = objective(tokens, np.random.default_rng(0))
    share = np.bincount(targets[targets >= 100] - 100, minlength=length) / count
    assert (share[0], share[-1]) == (0, 1)
    assert share.sum() == pytest.approx(6)
    assert share[2:-4].min() > 0.16
    assert share[2:-4].max() < 0.24


@pytest.mark.parametrize(("total", "parts"), [(1, 1), (2, 1), (2, 2), (5, 2), (6, 3), (7, 6), (7, 7)])
def test_every_partition_is_reached_about_equally_often(total: int, parts: int) -> None:
    cuts = combinations(range(1, total), parts - 1)
    possible = {tuple(np.diff([0, *cut, total]).tolist()) for cut in cuts}
    drawn = 400 * len(possible)
    got = _random_parts(np.random.default_rng(0), drawn, total, parts)
    found, counts = np.unique(got, axis=0, return_counts=True)
    assert {tuple(row) for row in found.tolist()} == possible
    assert counts.min() > 300
    assert counts.max() < 500


def test_too_many_spans_for_the_tokenizer_is_one_line_that_says_what_to_do() -> None:
    objective = corruption(0.5, 1.0, sentinels=64)
    assert objective.spans_and_noise(128) == (64, 64)
    with pytest.raises(PipelineError, match=r"pretrain\.sequence_length 130 .* needs 65 sentinels.*has 64") as caught:
        objective(rows(130, 2, 0), np.random.default_rng(0))
    assert "\n" not in str(caught.value)
