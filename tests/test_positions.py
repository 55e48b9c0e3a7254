"""Positions against what the papers write: formulas digit by digit, complex numbers, and the authors' own numbers."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import config, model
from torch import Tensor
from transformers.models.t5.modeling_t5 import T5Attention

from lightning_modules.transformer.positions import (
    AlibiBias,
    LearnedPositions,
    RelativeBias,
    RotaryPositions,
    SinusoidalPositions,
    alibi_slopes,
    rotate,
)


@pytest.mark.parametrize("d_model", [2, 6, 64])
def test_sinusoids_are_the_formula_of_the_paper_with_its_pairs_as_halves(d_model: int) -> None:
    positions_BL = torch.tensor([[0, 1, 2, 17, 599], [5, 4, 3, 2, 1]])
    x_BLD = torch.randn(2, 5, d_model)
    added_BLD = SinusoidalPositions(d_model)(x_BLD, positions_BL) - x_BLD
    for row, column in [(row, column) for row in range(2) for column in range(5)]:
        position = int(positions_BL[row, column])
        for i in range(d_model // 2):
            angle = position / 10_000 ** (2 * i / d_model)
            assert added_BLD[row, column, i] == pytest.approx(math.sin(angle), abs=1e-4)
            assert added_BLD[row, column, d_model // 2 + i] == pytest.approx(math.cos(angle), abs=1e-4)


def test_sinusoids_keep_the_type_of_the_embeddings_and_serve_all_rows_alike() -> None:
    positions, x_BLD = SinusoidalPositions(4), torch.zeros(3, 5, 4)
    added_BLD = positions(x_BLD, torch.arange(5)[None])
    assert torch.equal(added_BLD[0], added_BLD[2])
    assert positions(x_BLD.bfloat16(), torch.arange(5)[None]).dtype == torch.bfloat16


def test_learned_positions_add_the_row_of_each_position_and_learn_it() -> None:
    positions = LearnedPositions(10, 4)
    torch.nn.init.normal_(positions.weight_LD)
    x_BLD, positions_BL = torch.randn(2, 3, 4), torch.tensor([[7, 8, 9], [0, 0, 1]])
    torch.testing.assert_close(positions(x_BLD, positions_BL), x_BLD + positions.weight_LD[positions_BL])
    positions(x_BLD, positions_BL).sum().backward()
    assert positions.weight_LD.grad is not None
    assert positions.weight_LD.grad[:, 0].tolist() == [2, 1, 0, 0, 0, 0, 0, 1, 1, 1]


def turned(x_BHLK: Tensor, positions_L: Tensor, base: float) -> Tensor:
    """The paper's R·x: pair i as a complex number times exp(i·position·base^(-2i/K)); our pairs are (i, K/2 + i)."""
    half = x_BHLK.shape[-1] // 2
    rate_K = base ** (-torch.arange(half, dtype=torch.float64) * 2 / x_BHLK.shape[-1])
    pair_BHLK = torch.complex(x_BHLK[..., :half].double(), x_BHLK[..., half:].double())
    angle_LK = positions_L[:, None] * rate_K
    pair_BHLK = pair_BHLK * torch.polar(torch.ones_like(angle_LK), angle_LK)
    return torch.cat([pair_BHLK.real, pair_BHLK.imag], dim=-1)


@pytest.mark.parametrize(("width", "base"), [(2, 10_000.0), (8, 10_000.0), (8, 500_000.0)])
def test_rotary_turns_pairs_as_complex_numbers(width: int, base: float) -> None:
    torch.manual_seed(0)
    positions_L, x_BHLK = torch.tensor([0, 1, 2, 50, 700]), torch.randn(2, 3, 5, width)
    ours_BHLK = rotate(x_BHLK, RotaryPositions(width, base, 1.0)(positions_L))
    torch.testing.assert_close(ours_BHLK.double(), turned(x_BHLK, positions_L, base), atol=1e-4, rtol=1e-4)
    assert torch.equal(ours_BHLK[:, :, 0], x_BHLK[:, :, 0])


@given(query=st.integers(0, 300), key=st.integers(0, 300), shift=st.integers(0, 3000))
def test_rotary_scores_depend_on_the_distance_alone(query: int, key: int, shift: int) -> None:
    torch.manual_seed(query + key)
    rotary, (q_K, k_K) = RotaryPositions(16, 10_000.0, 1.0).double(), torch.randn(2, 1, 16, dtype=torch.float64)

    def score(q_at: int, k_at: int) -> float:
        turned_q, turned_k = (
            rotate(x_K, rotary(torch.tensor([at], dtype=torch.float64))) for x_K, at in ((q_K, q_at), (k_K, k_at))
        )
        return float((turned_q * turned_k).sum())

    assert score(query + shift, key + shift) == pytest.approx(score(query, key), abs=1e-9)


def test_scaling_rotary_positions_is_interpolating_them() -> None:
    positions_L = torch.arange(64)
    scaled = RotaryPositions(8, 10_000.0, 4.0)(positions_L)
    plain = RotaryPositions(8, 10_000.0, 1.0)(positions_L / 4)
    for one, other in zip(scaled, plain, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    torch.testing.assert_close(scaled[0][::4], RotaryPositions(8, 10_000.0, 1.0)(positions_L[:16])[0])


def test_the_slopes_of_alibi_are_the_papers() -> None:
    """Section 3: "for 8 heads the slopes are 1/2, 1/4, …, 1/256"; for 16 they interpolate with 1/√2, 1/2, 1/2√2, …"""
    assert alibi_slopes(8) == [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]
    assert alibi_slopes(16) == pytest.approx([2 ** (-n / 2) for n in range(1, 17)])
    assert alibi_slopes(1) == [2**-8]


@pytest.mark.parametrize("heads", [3, 5, 6, 7, 9, 12, 20])
def test_slopes_for_other_numbers_of_heads_take_every_second_of_the_next_power(heads: int) -> None:
    below = next(power for power in (2, 4, 8, 16) if power * 2 > heads)
    slopes = alibi_slopes(heads)
    assert slopes[:below] == alibi_slopes(below)
    assert slopes[below:] == alibi_slopes(2 * below)[0::2][: heads - below]
    assert len(set(slopes)) == heads


def test_the_bias_of_alibi_is_minus_slope_times_distance() -> None:
    bias_BHLS = AlibiBias(4)(torch.tensor([3, 4]), torch.arange(6))
    assert bias_BHLS.shape == (1, 4, 2, 6)
    for head, slope in enumerate(alibi_slopes(4)):
        for row, query in enumerate((3, 4)):
            for key in range(6):
                assert bias_BHLS[0, head, row, key] == pytest.approx(-slope * abs(query - key))


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("buckets", "distance"), [(32, 128), (8, 20), (4, 3), (64, 256)])
def test_relative_buckets_are_t5s(bidirectional: bool, buckets: int, distance: int) -> None:
    """Each bucket's bias is set to its own number: what is added says which bucket a distance has."""
    bias = RelativeBias(2, buckets, distance, bidirectional)
    with torch.no_grad():
        bias.weight_NH.copy_(torch.arange(buckets)[:, None] + torch.tensor([0.0, 1000.0]))
    offset_S = torch.arange(-600, 601)
    theirs_S = T5Attention._relative_position_bucket(offset_S, bidirectional, buckets, distance)
    ours_BHLS = bias(torch.tensor([600]), torch.arange(1201))
    assert ours_BHLS.shape == (1, 2, 1, 1201)
    assert ours_BHLS[0, 0, 0].tolist() == theirs_S.tolist()
    assert ours_BHLS[0, 1, 0].tolist() == (theirs_S + 1000).tolist()
    assert len(set(theirs_S.tolist())) > buckets // 2


def test_a_decoder_has_buckets_for_the_past_alone_and_an_encoder_for_both() -> None:
    made = model(positions="relative")
    query_S = torch.arange(9)
    past_LS, both_LS = (stack.bias(query_S, query_S)[0, 0] for stack in (made.decoder, made.encoder))
    assert torch.equal(past_LS.triu(), past_LS[0, 0].expand(9, 9).triu())
    assert len(past_LS[8].unique()) == len(both_LS[4].unique()) == 9


@pytest.mark.parametrize("architecture", ["encoder", "decoder", "encoder_decoder"])
def test_learned_positions_end_with_an_error_that_names_the_key(architecture: str) -> None:
    made = model(architecture=architecture, positions="learned", max_length=10)
    inputs = [torch.ones(1, 11, dtype=torch.long)] * (1 if architecture == "encoder" else 2)
    with pytest.raises(ValueError, match=r"tokens .*model\.max_length \(10\)"):
        made(*inputs)
    if architecture == "encoder_decoder":
        with pytest.raises(ValueError, match=r"11 tokens"):
            made(inputs[0][:, :5], inputs[1])
    sources = 0 if architecture == "decoder" else 10
    assert made(*(ids[:, :n] for ids, n in zip(inputs, (sources, 10), strict=False))).isfinite().all()


@pytest.mark.parametrize("positions", ["sinusoidal", "rotary", "alibi", "relative", "none"])
@pytest.mark.parametrize("architecture", ["encoder", "decoder", "encoder_decoder"])
def test_every_other_scheme_goes_beyond_the_longest_of_training(positions: str, architecture: str) -> None:
    made = model(architecture=architecture, positions=positions, max_length=4)
    inputs = [torch.randint(5, 600, (1, 300))] * (1 if architecture == "encoder" else 2)
    assert made(*inputs).isfinite().all()


def test_only_learned_positions_are_in_the_checkpoint() -> None:
    for positions in ("sinusoidal", "rotary", "alibi", "none"):
        names = set(model(positions=positions).state_dict())
        assert names == set(model(positions="none").state_dict()), positions
    assert model(positions="learned").state_dict()["encoder.positions.weight_LD"].shape == (config().max_length, 32)
    assert model(positions="relative").state_dict()["decoder.bias.weight_NH"].shape == (32, 4)
