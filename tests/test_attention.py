"""Attention against its formula written out in float64, gradients included; rows that see nothing; caches; dropout."""

from typing import Any

import pytest
import torch
from test_positions import turned
from tiny import config
from torch import Tensor, nn

from lightning_modules.transformer import plain_attention
from lightning_modules.transformer.attention import Attention, KeyValueCache
from lightning_modules.transformer.masks import Visibility
from lightning_modules.transformer.positions import RotaryPositions

D, HEADS, EPS = 24, 4, 1e-5
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "without biases": {"bias": False},
    "grouped": {"key_value_heads": 2},
    "multi-query": {"key_value_heads": 1},
    "normalised queries and keys": {"qk_norm": True},
    "unscaled": {"scale_attention": False},
    "wide heads": {"head_width": 10},
    "everything": {"key_value_heads": 2, "qk_norm": True, "head_width": 10, "bias": False, "scale_attention": False},
}
SEEN = ("all", "causal", "some", "biased", "some, biased")


@pytest.fixture(params=["fused", "written out"])
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's kernels, or the formula as CPUs with matrix units learn in bfloat16."""
    monkeypatch.setattr(plain_attention, "is_faster", lambda *_: request.param == "written out")


def make(seed: int = 0, **changes: Any) -> Attention:
    torch.manual_seed(seed)
    attention = Attention(config(d_model=D, heads=HEADS, norm_eps=EPS, **changes)).double()
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.4)
    return attention.eval()


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def normalised(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight


def by_the_formula(
    attention: Attention, x: Tensor, memory: Tensor, allowed_BLS: Tensor, bias_HLS: Tensor, rotary: bool
) -> Tensor:
    """softmax(Q·Kᵀ/√K + bias)·V, head by head; each group of heads has one head of keys and values."""
    width = attention.query.out_features // HEADS
    keys, values = attention.key_value(memory).split(attention.groups * width, dim=-1)
    queries, heads = attention.query(x), []
    for head in range(HEADS):
        shared = head // (HEADS // attention.groups)
        q, k = queries[..., head * width : (head + 1) * width], keys[..., shared * width : (shared + 1) * width]
        if attention.query_norm is not None and attention.key_norm is not None:
            q, k = normalised(q, attention.query_norm.weight), normalised(k, attention.key_norm.weight)
        if rotary:
            q, k = (turned(part, torch.arange(part.shape[1]), 10_000.0) for part in (q, k))
        scores = torch.einsum("blk,bsk->bls", q, k) * (width**-0.5 if attention.scale is None else 1.0)
        weights = torch.where(allowed_BLS, (scores + bias_HLS[head]).exp(), 0.0)
        weights = weights / weights.sum(-1, keepdim=True)
        heads.append(weights @ values[..., shared * width : (shared + 1) * width])
    return attention.output(torch.cat(heads, dim=-1))


def same_with_gradients(attention: Attention, ours: Tensor, formula: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(ours, formula, atol=1e-12, rtol=1e-9)
    weighting = torch.randn_like(ours)
    wanted = [*inputs, *attention.parameters()]
    got = torch.autograd.grad((ours * weighting).sum(), wanted)
    expected = torch.autograd.grad((formula * weighting).sum(), wanted)
    for one, other in zip(got, expected, strict=True):
        assert other.abs().max() > 1e-6 or one.abs().max() < 1e-9
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-7)


def seen(kind: str, queries: int, keys: int) -> tuple[Visibility, Tensor, Tensor, list[Tensor]]:
    """What attention is told, the same as (B, L, S) and (H, L, S), and what of it has a gradient."""
    allowed_BLS, bias_HLS = torch.ones(2, queries, keys, dtype=torch.bool), torch.zeros(HEADS, queries, keys).double()
    if kind == "all":
        return Visibility(), allowed_BLS, bias_HLS, []
    if kind == "causal":
        return Visibility(causal=True), allowed_BLS.tril(), bias_HLS, []
    bias_1HLS = random(1, HEADS, queries, keys)
    if kind == "biased":
        return Visibility(None, bias_1HLS), allowed_BLS, bias_1HLS[0], [bias_1HLS]
    allowed_BLS = torch.rand(2, queries, keys) < 0.6
    allowed_BLS[..., 0] = True
    if kind == "some":
        return Visibility(allowed_BLS[:, None]), allowed_BLS, bias_HLS, []
    return Visibility(allowed_BLS[:, None], bias_1HLS), allowed_BLS, bias_1HLS[0], [bias_1HLS]


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize("kind", SEEN)
@pytest.mark.parametrize("shape", SHAPES)
def test_self_attention_is_the_formula(shape: str, kind: str) -> None:
    attention = make(1, **SHAPES[shape])
    x = random(2, 7, D)
    visibility, allowed_BLS, bias_HLS, learned = seen(kind, 7, 7)
    ours = attention(x, visibility)
    formula = by_the_formula(attention, x, x, allowed_BLS, bias_HLS, rotary=False)
    same_with_gradients(attention, ours, formula, [x, *learned])


@pytest.mark.parametrize("shape", ["plain", "grouped", "everything"])
def test_with_rotary_positions_it_is_the_formula_in_complex_numbers(shape: str) -> None:
    attention, x = make(2, **SHAPES[shape]), random(2, 7, D)
    width = attention.query.out_features // HEADS
    rotary = RotaryPositions(width, 10_000.0, 1.0)
    rotary.rate_K = 10_000.0 ** (-torch.arange(0, width, 2).double() / width)  # not rounded to float32
    visibility, allowed_BLS, bias_HLS, _ = seen("causal", 7, 7)
    ours = attention(x, visibility, turns=rotary(torch.arange(7)))
    formula = by_the_formula(attention, x, x, allowed_BLS, bias_HLS, rotary=True)
    same_with_gradients(attention, ours, formula, [x])


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("targets", "sources"), [(1, 1), (4, 9), (9, 4)])
def test_cross_attention_with_padding_is_the_formula(shape: str, targets: int, sources: int) -> None:
    attention, x, memory = make(3, **SHAPES[shape]), random(3, targets, D), random(3, sources, D)
    real_BS = torch.arange(sources) < torch.tensor([sources, max(sources - 2, 1), 1])[:, None]
    ours = attention(x, Visibility(real_BS[:, None, None, :]), memory_BSD=memory)
    allowed_BLS, bias_HLS = real_BS[:, None, :].expand(3, targets, sources), torch.zeros(HEADS, 1, 1)
    formula = by_the_formula(attention, x, memory, allowed_BLS, bias_HLS, rotary=False)
    same_with_gradients(attention, ours, formula, [x, memory])


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize("biased", ["", "fixed", "learned"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("length", [1, 5, 40, 200])
def test_a_row_in_which_every_key_is_masked_gives_no_nan(length: int, dtype: torch.dtype, biased: str) -> None:
    attention = make().to(dtype)
    x = torch.randn(2, length, D, dtype=dtype, requires_grad=True)
    allowed = torch.tensor([True, False])[:, None, None, None].expand(2, 1, 1, length)
    bias = torch.randn(1, HEADS, length, length, requires_grad=biased == "learned") if biased else None
    out = attention(x, Visibility(allowed, bias))
    out.float().square().sum().backward()
    assert out.isfinite().all()
    given = [x, *attention.parameters()] + ([bias] if bias is not None and bias.requires_grad else [])
    for tensor in given:
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
    alone = attention(x[:1], Visibility(None, bias))
    torch.testing.assert_close(out[:1], alone, atol=2e-2 if dtype == torch.bfloat16 else 1e-5, rtol=1e-2)
    # What sees nothing gets nothing: the values count zero.
    torch.testing.assert_close(out[1], attention.output.bias.expand(length, D), atol=1e-6, rtol=0)


@pytest.mark.parametrize("pieces", [[1] * 9, [4, 1, 3, 1], [9]])
@pytest.mark.parametrize("shape", ["plain", "grouped", "everything"])
def test_a_cache_filled_piece_by_piece_gives_the_full_pass(shape: str, pieces: list[int]) -> None:
    attention, cache = make(4, **SHAPES[shape]), KeyValueCache()
    rotary, x = RotaryPositions(attention.query.out_features // HEADS, 10_000.0, 1.0), torch.randn(2, 9, D).double()
    full = attention(x, Visibility(causal=True), turns=rotary(torch.arange(9)))
    start, lower = 0, torch.ones(9, 9, dtype=torch.bool).tril()
    for piece in pieces:
        end = start + piece
        visibility = Visibility(lower[None, None, start:end, :end])
        step = attention(x[:, start:end], visibility, turns=rotary(torch.arange(start, end)), cache=cache)
        torch.testing.assert_close(step, full[:, start:end], atol=1e-12, rtol=1e-9)
        start = end
    assert cache.key_BHLK is not None
    assert cache.key_BHLK.shape[:3] == (2, attention.groups, 9)  # of grouped heads, one for each group alone


def test_a_cross_cache_is_filled_once_and_keeps_the_rows_asked_for() -> None:
    attention, cache, everything = make(), KeyValueCache(), Visibility()
    memory, x = torch.randn(3, 5, D).double(), torch.randn(3, 1, D).double()
    full = attention(x, everything, memory_BSD=memory)
    torch.testing.assert_close(attention(x, everything, memory_BSD=memory, cache=cache), full)
    # Once filled the memory itself is no longer read: another one changes nothing.
    torch.testing.assert_close(attention(x, everything, memory_BSD=torch.zeros_like(memory), cache=cache), full)
    rows = torch.tensor([2, 0, 0])
    cache.keep(rows)
    torch.testing.assert_close(attention(x[rows], everything, memory_BSD=memory[rows], cache=cache), full[rows])


def test_attention_weights_are_dropped_in_training_only_and_keep_their_mean() -> None:
    attention, x = make(attention_dropout=0.5), torch.randn(1, 8, D).double().expand(4000, 8, D)
    plain = attention(x, Visibility())
    torch.testing.assert_close(plain, attention(x, Visibility()), atol=0, rtol=0)
    attention.train()
    dropped = attention(x, Visibility())
    assert not torch.isclose(dropped, plain).all(-1).any()
    assert ((dropped.mean(0) - plain[0]).abs() < 6 * dropped.std(0) / 4000**0.5).all()
