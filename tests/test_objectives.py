"""Objectives: what is read and what is to be written make the row again, in the numbers asked for."""

from itertools import pairwise

import numpy as np
import pytest
from corruptions import PAD, corruption, denoising, masked, rows
from hypothesis import given
from hypothesis import strategies as st
from tiny import EOS, uncorrupted

from lightning_modules.errors import PipelineError
from lightning_modules.objectives import CausalLM, Mixture, Objective, PrefixLM

ALL: dict[str, Objective] = {
    "causal_lm": CausalLM(),
    "prefix_lm": PrefixLM(),
    "masked_lm": masked(0.2),
    "whole words": masked(0.2, whole_words=True),
    "span_corruption": corruption(0.3, 2.0),
    "denoising": denoising(0.3, 2.0),
    "mixture": Mixture(((denoising(0.3, 3.0), 1.0), (corruption(0.5, 2.0), 3.0))),
}
RANDOM = sorted(set(ALL) - {"causal_lm"})


# Of all objectives


@pytest.mark.parametrize("name", RANDOM)
def test_it_is_a_function_of_the_generator_alone(name: str) -> None:
    tokens = rows(40, 6, 0, separators=0.05)
    one, same, other = (ALL[name](tokens, np.random.default_rng(seed)) for seed in (1, 1, 3))
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert not np.array_equal(one[0], other[0])


@pytest.mark.parametrize("name", sorted(ALL))
def test_a_key_stands_for_the_generator_that_numpy_makes_of_it(name: str) -> None:
    tokens, key = rows(40, 6, 0, separators=0.05), (7, 1, 2**40)
    documents = np.cumsum(tokens == EOS, axis=1)
    by_key, drawn = (ALL[name].packed(tokens, documents, random) for random in (key, np.random.default_rng(key)))
    assert by_key.documents is not None
    assert drawn.documents is not None
    pairs = zip((*by_key[:2], *by_key.documents), (*drawn[:2], *drawn.documents), strict=True)
    assert all(np.array_equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("name", sorted(set(RANDOM) - {"prefix_lm"}))
def test_rows_of_a_batch_are_corrupted_differently(name: str) -> None:
    sources, _ = ALL[name](np.tile(rows(40, 1, 0), (8, 1)), np.random.default_rng(0))
    assert len(np.unique(sources, axis=0)) == 8


@pytest.mark.parametrize("name", sorted(ALL))
def test_a_row_does_not_depend_on_what_its_neighbours_hold(name: str) -> None:
    tokens = rows(60, 5, 0, separators=0.05)
    others = rows(60, 5, 1, separators=0.3)
    others[2] = tokens[2]
    one, other = (ALL[name](batch, np.random.default_rng(0)) for batch in (tokens, others))
    for side_one, side_other in zip(one, other, strict=True):
        assert side_one.shape == side_other.shape
        assert np.array_equal(side_one[2], side_other[2])


@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("name", sorted(ALL))
@pytest.mark.parametrize("seed", range(5))
def test_short_rows_have_something_to_predict(name: str, length: int, seed: int) -> None:
    for tokens in (rows(length, 4, seed), np.full((4, length), EOS), rows(length, 1, seed)):
        before = tokens.copy()
        source, target = ALL[name](tokens, np.random.default_rng(seed))
        assert np.array_equal(tokens, before), "the rows belong to the caller"
        assert source.dtype == target.dtype == np.int64
        assert source.shape[0] == target.shape[0] == len(tokens)
        assert ((target != PAD).sum(axis=1) >= 1).all()


# Causal and prefix


@given(length=st.integers(1, 50), count=st.integers(1, 4), seed=st.integers(0, 2**32))
def test_causal_and_prefix_source_and_target_one_after_the_other_are_the_row(
    length: int, count: int, seed: int
) -> None:
    tokens = rows(length, count, seed)
    source, target = CausalLM()(tokens, np.random.default_rng(seed))
    assert source.shape == (count, 0)
    assert np.array_equal(target, tokens)
    source, target = PrefixLM()(tokens, np.random.default_rng(seed))
    assert np.array_equal(np.concatenate([source, target], axis=1), tokens)
    assert target.shape[1] >= 1
    assert source.shape[1] >= min(1, length - 1)


def test_a_prefix_ends_anywhere_equally_often() -> None:
    rng, tokens = np.random.default_rng(0), rows(9, 2, 0)
    cuts = np.bincount([PrefixLM()(tokens, rng)[0].shape[1] for _ in range(8000)], minlength=9)
    assert cuts[0] == 0
    assert abs(cuts[1:] - 1000).max() < 5 * 30  # five standard deviations of a count with p = 1/8


# Span corruption


@given(
    length=st.integers(1, 80),
    count=st.integers(1, 5),
    rate=st.floats(0.01, 0.99),
    mean=st.floats(1, 12),
    seed=st.integers(0, 2**32),
)
def test_corrupted_source_and_target_make_the_row_again(
    length: int, count: int, rate: float, mean: float, seed: int
) -> None:
    objective, tokens = corruption(rate, mean), rows(length, count, seed)
    number, noise = objective.spans_and_noise(length)
    assert noise == (min(max(round(length * rate), 1), length - 1) if length > 1 else 1)
    assert 1 <= number <= noise
    sources, targets = objective(tokens, np.random.default_rng(seed))
    assert sources.shape == (count, length - noise + number + 1)
    assert targets.shape == (count, noise + number + 1)
    for row, source, target in zip(tokens, sources, targets, strict=True):
        again, spans = uncorrupted(source, target)
        assert again == row.tolist()
        assert len(spans) == number
        assert all(spans)
        assert sum(map(len, spans)) == noise
        assert length == 1 or source[0] == row[0]  # the first token is never hidden
        # No two sentinels stand together: neighbouring spans would be one.
        assert all(a >= 100 or b >= 100 for a, b in pairwise(source[:-1]))


def test_the_shares_are_the_papers() -> None:
    number, noise = corruption(0.15, 3.0).spans_and_noise(256)
    assert (number, noise) == (13, 38)
    assert noise / 256 == pytest.approx(0.15, abs=0.005)
    assert noise / number == pytest.approx(3.0, abs=0.15)


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


def test_too_many_spans_for_the_tokenizer_is_one_line_that_says_what_to_do() -> None:
    objective = corruption(0.5, 1.0, sentinels=64)
    assert objective.spans_and_noise(128) == (64, 64)
    with pytest.raises(PipelineError, match=r"pretrain\.sequence_length 130 .* needs 65 sentinels.*has 64") as caught:
        objective(rows(130, 2, 0), np.random.default_rng(0))
    assert "\n" not in str(caught.value)


# Mixtures and names


def test_a_mixture_draws_by_weight_and_gives_what_the_drawn_objective_makes() -> None:
    mixture = Mixture(((CausalLM(), 1.0), (PrefixLM(), 3.0)))
    rng, tokens = np.random.default_rng(0), rows(12, 2, 0)
    made = [mixture(tokens, rng) for _ in range(4000)]
    assert all(np.array_equal(np.concatenate(pair, axis=1), tokens) for pair in made)
    causal = sum(source.shape[1] == 0 for source, _ in made)
    assert causal == pytest.approx(1000, abs=5 * (4000 * 0.25 * 0.75) ** 0.5)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("inf"), float("nan")])
def test_a_mixture_needs_weights_above_zero(weight: float) -> None:
    with pytest.raises(PipelineError, match="weight above 0"):
        Mixture(((CausalLM(), 1.0), (PrefixLM(), weight)))
