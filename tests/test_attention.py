"""Attention against the formula of the paper written out in float64, gradients included; masks, causality, cache."""

import pytest
import torch
from torch import Tensor, nn

from lightning_modules.transformer.attention import Attention, KeyValueCache

D, HEADS = 24, 3


def make(seed: int = 0, dropout: float = 0.0) -> Attention:
    torch.manual_seed(seed)
    attention = Attention(D, HEADS, dropout).double()
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.4)
    return attention.eval()


def by_the_formula(attention: Attention, x: Tensor, memory: Tensor, allowed: Tensor) -> Tensor:
    """softmax(Q·Kᵀ/√K)·V, head by head; `allowed` (B, L, S) is true where a query may see a key."""
    keys, values = attention.key_value(memory).split(D, dim=-1)
    queries, width = attention.query(x), D // HEADS
    heads = []
    for head in range(HEADS):
        part = slice(head * width, (head + 1) * width)
        scores = torch.einsum("blk,bsk->bls", queries[..., part], keys[..., part]) / width**0.5
        weights = torch.where(allowed, scores.exp(), 0.0)
        heads.append(weights / weights.sum(-1, keepdim=True) @ values[..., part])
    return attention.output(torch.cat(heads, dim=-1))


def same_with_gradients(attention: Attention, ours: Tensor, formula: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(ours, formula, atol=1e-12, rtol=1e-10)
    weighting = torch.randn_like(ours)
    wanted = [*inputs, *attention.parameters()]
    got = torch.autograd.grad((ours * weighting).sum(), wanted)
    expected = torch.autograd.grad((formula * weighting).sum(), wanted)
    for one, other in zip(got, expected, strict=True):
        assert other.abs().max() > 1e-6 or one.abs().max() < 1e-9  # a bias of the keys has none at all
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("length", [1, 2, 7, 33])
@pytest.mark.parametrize("causal", [False, True])
def test_self_attention_is_the_formula(length: int, causal: bool) -> None:
    attention = make(length)
    x = torch.randn(2, length, D, dtype=torch.float64, requires_grad=True)
    allowed = torch.ones(2, length, length, dtype=torch.bool)
    if causal:
        allowed = allowed.tril()
    same_with_gradients(attention, attention(x, causal=causal), by_the_formula(attention, x, x, allowed), [x])


@pytest.mark.parametrize(("targets", "sources"), [(1, 1), (4, 9), (9, 4)])
def test_cross_attention_with_padding_is_the_formula(targets: int, sources: int) -> None:
    attention = make(targets)
    x = torch.randn(3, targets, D, dtype=torch.float64, requires_grad=True)
    memory = torch.randn(3, sources, D, dtype=torch.float64, requires_grad=True)
    real = torch.arange(sources) < torch.tensor([sources, max(sources - 2, 1), 1])[:, None]
    ours = attention(x, memory_BSD=memory, mask_B11S=real[:, None, None, :])
    formula = by_the_formula(attention, x, memory, real[:, None, :].expand(3, targets, sources))
    same_with_gradients(attention, ours, formula, [x, memory])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("length", [1, 5, 40])
def test_a_row_in_which_every_key_is_masked_gives_no_nan(length: int, dtype: torch.dtype) -> None:
    attention = make().to(dtype)
    x = torch.randn(2, length, D, dtype=dtype, requires_grad=True)
    mask = torch.tensor([True, False])[:, None, None, None].expand(2, 1, 1, length)
    out = attention(x, mask_B11S=mask)
    out.float().square().sum().backward()
    assert out.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in attention.parameters())
    alone = attention(x[:1])
    torch.testing.assert_close(out[:1], alone, atol=1e-6, rtol=2e-2 if dtype == torch.bfloat16 else 1e-5)


def test_a_later_token_never_changes_an_earlier_output() -> None:
    attention = make()
    x = torch.randn(2, 11, D, dtype=torch.float64)
    before = attention(x, causal=True)
    for position in range(11):
        changed = x.clone()
        changed[:, position] += 10.0
        after = attention(changed, causal=True)
        assert torch.equal(after[:, :position], before[:, :position])
        assert not torch.isclose(after[:, position:], before[:, position:]).all(-1).any()


def test_a_cache_filled_token_by_token_gives_the_full_pass() -> None:
    attention, x, cache = make(), torch.randn(2, 9, D, dtype=torch.float64), KeyValueCache()
    full = attention(x, causal=True)
    for position in range(9):
        step = attention(x[:, position : position + 1], causal=True, cache=cache)
        torch.testing.assert_close(step, full[:, position : position + 1], atol=1e-12, rtol=1e-10)
    assert cache.key_BHLK is not None
    assert cache.key_BHLK.shape == (2, HEADS, 9, D // HEADS)


def test_a_cross_cache_is_filled_once_and_keeps_the_rows_asked_for() -> None:
    attention, cache = make(), KeyValueCache()
    memory, x = torch.randn(3, 5, D, dtype=torch.float64), torch.randn(3, 1, D, dtype=torch.float64)
    full = attention(x, memory_BSD=memory)
    torch.testing.assert_close(attention(x, memory_BSD=memory, cache=cache), full)
    # Once filled the memory itself is no longer read: another one changes nothing.
    torch.testing.assert_close(attention(x, memory_BSD=torch.zeros_like(memory), cache=cache), full)
    rows = torch.tensor([2, 0])
    cache.keep(rows)
    torch.testing.assert_close(attention(x[rows], memory_BSD=memory[rows], cache=cache), full[rows])


def test_attention_weights_are_dropped_in_training_only() -> None:
    attention, x = make(dropout=0.5), torch.randn(2, 8, D, dtype=torch.float64)
    assert torch.equal(attention(x), attention(x))
    attention.train()
    assert not torch.equal(attention(x), attention(x))
