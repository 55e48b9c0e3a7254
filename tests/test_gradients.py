"""Gradients that are written out against autograd's of the plain formula, and against finite differences."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_modules.transformer.gradients import SLOPES, RMSNorm, gate, gate_apart, turn
from lightning_modules.transformer.layers import ACTIVATIONS

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "in order": lambda x: x,
    "heads beside positions": lambda x: x.transpose(1, 2),
    "a part of what is wider": lambda x: x.repeat(1, 1, 1, 2)[..., : x.shape[-1]],
}
layouts = pytest.mark.parametrize("layout", LAYOUTS)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def close(ours: Callable[..., Tensor], plain: Callable[..., Tensor], inputs: list[Tensor]) -> None:
    """Values and gradients, for a gradient from above that is random; nothing that comes in is changed."""
    given = [tensor.detach().clone() for tensor in inputs]
    got, expected = ours(*inputs), plain(*inputs)
    torch.testing.assert_close(got, expected)
    with torch.no_grad():
        torch.testing.assert_close(ours(*inputs), expected)
    above = torch.randn_like(expected)
    learned = [tensor for tensor in inputs if tensor.requires_grad]
    kept_above = above.clone()
    for one, other in zip(
        torch.autograd.grad(got, learned, above), torch.autograd.grad(expected, learned, above), strict=True
    ):
        torch.testing.assert_close(one, other, atol=2e-5 if one.dtype == torch.float32 else 1e-12, rtol=1e-5)
    assert torch.equal(above, kept_above)
    assert all(torch.equal(tensor, before) for tensor, before in zip(inputs, given, strict=True))


def drawn(layout: str, dtype: torch.dtype, width: int = 12) -> Tensor:
    torch.manual_seed(0)
    return LAYOUTS[layout](torch.randn(2, 7, 3, width, dtype=dtype)).requires_grad_()


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Pairs as complex numbers."""
    half = x.shape[-1] // 2
    pairs = torch.complex(x[..., :half], x[..., half:]) * torch.complex(cos[..., :half], sin[..., :half])
    return torch.cat([pairs.real, pairs.imag], dim=-1)


@dtypes
@layouts
def test_turning(layout: str, dtype: torch.dtype) -> None:
    x = drawn(layout, dtype)
    angles = torch.randn(x.shape[1], 1, 6, dtype=dtype).repeat(1, 1, 2)
    close(turn, turned, [x, angles.cos(), angles.sin()])


@dtypes
@layouts
@pytest.mark.parametrize("activation", SLOPES)
def test_gating(activation: str, layout: str, dtype: torch.dtype) -> None:
    active = ACTIVATIONS[activation]

    def plain(x: Tensor) -> Tensor:
        return active(x[..., :6]) * x[..., 6:]

    close(lambda x: gate(x, active, SLOPES[activation]), plain, [drawn(layout, dtype)])
    halves = [half.detach().requires_grad_() for half in drawn(layout, dtype).chunk(2, dim=-1)]
    close(
        lambda first, second: gate_apart(first, second, active, SLOPES[activation]),
        lambda first, second: active(first) * second,
        halves,
    )


@dtypes
@layouts
@pytest.mark.parametrize("eps", [1e-6, 0.5])
def test_the_root_mean_square(eps: float, layout: str, dtype: torch.dtype) -> None:
    norm, x = RMSNorm(12, eps=eps).to(dtype), drawn(layout, dtype)
    nn.init.normal_(norm.weight)

    def ours(x: Tensor, weight: Tensor) -> Tensor:
        return torch.func.functional_call(norm, {"weight": weight}, (x,))  # type: ignore[no-any-return]

    def plain(x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight

    close(ours, plain, [x, norm.weight])


def test_finite_differences() -> None:
    x, angles = drawn("in order", torch.float64, 4), torch.randn(7, 1, 2, dtype=torch.float64).repeat(1, 1, 2)
    norm = RMSNorm(4, eps=0.1).double()
    checked: list[Callable[[Tensor], Tensor]] = [lambda x: turn(x, angles.cos(), angles.sin()), norm]
    checked += [lambda x, a=name: gate(x, ACTIVATIONS[a], SLOPES[a]) for name in SLOPES]
    for function in checked:
        assert torch.autograd.gradcheck(function, (x,))


def test_a_norm_whose_input_is_all_zero_has_a_gradient() -> None:
    norm, x = RMSNorm(4, eps=1e-5), torch.zeros(2, 4, requires_grad=True)
    norm(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.full((2, 4), 1e5**0.5))


@pytest.mark.parametrize("frozen", ["input", "weight", "both"])
def test_what_does_not_learn_gets_no_gradient(frozen: str) -> None:
    norm, x = RMSNorm(4, eps=1e-5), torch.randn(3, 4, requires_grad=frozen == "weight")
    norm.weight.requires_grad_(frozen == "input")
    out = norm(x)
    assert out.requires_grad == (frozen != "both")
    if frozen != "both":
        out.sum().backward()
    assert (x.grad is not None, norm.weight.grad is not None) == (frozen == "weight", frozen == "input")


@pytest.mark.parametrize("half", ["weights", "autocast"])
def test_bf16_is_as_near_as_torchs_own(half: str) -> None:
    torch.manual_seed(0)
    x, norm, theirs = torch.randn(5, 64), RMSNorm(64, eps=1e-5), nn.RMSNorm(64, eps=1e-5)
    made: Any = nn.Sequential(nn.Linear(64, 64), norm)
    given = x
    if half == "weights":
        made, theirs, given = made.bfloat16(), theirs.bfloat16(), x.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=half == "autocast"):
        out, expected = made(given), theirs(made[0](given))
        gated = gate(made[0](given), functional.silu, SLOPES["swiglu"])
    assert out.dtype == expected.dtype
    torch.testing.assert_close(out, expected, atol=2e-2, rtol=2e-2)
    (out.float().sum() + gated.float().sum()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in made.parameters())


def test_a_recorded_program_has_the_plain_formulas_alone() -> None:
    class Everything(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.linear = RMSNorm(8, eps=1e-5), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            x = turn(self.norm(self.linear(x)), x.cos(), x.sin())
            return gate(x, functional.silu, SLOPES["swiglu"])

    made, x = Everything(), torch.randn(3, 8)
    program = torch.export.export(made, (x,))
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not any("autograd" in name or "backward" in name for name in called)
    torch.testing.assert_close(program.module()(x), made(x))
