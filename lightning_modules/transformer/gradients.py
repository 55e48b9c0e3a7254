"""Parts of a layer whose gradients are written out, because autograd's take several times as many passes over memory.

The same mathematics; sums may be rounded otherwise in the last bit. On a CPU such passes, not products, are what small
models wait for. Where nothing learns, and in exported programs, the plain formulas stand that these must equal.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_aten = torch.ops.aten


def learns(x: Tensor) -> bool:
    """Whether a gradient through `x` is wanted, of a program that runs rather than one that is recorded."""
    return torch.is_grad_enabled() and x.requires_grad and not torch.compiler.is_compiling()


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Each pair (i, K/2 + i) of the last dimension turned by the angles whose cosines and sines (…, K) are given."""
    if learns(x):
        return _Turn.apply(x, cos, sin)  # type: ignore[no-any-return, no-untyped-call]
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class _Turn(torch.autograd.Function):
    """The gradient is turned back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        cos, sin = ctx.saved_tensors
        return _turned(gradient, cos, -sin), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    out, half = x * cos, x.shape[-1] // 2
    out[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
    out[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return out


Activation = Callable[[Tensor], Tensor]
# Of gated activations: (gradient of the result, input, grad_input=where to write) → gradient of the input.
SLOPES: dict[str, Callable[..., Tensor]] = {
    "swiglu": _aten.silu_backward.grad_input,
    "geglu": _aten.gelu_backward.grad_input,
    "geglu_tanh": partial(_aten.gelu_backward.grad_input, approximate="tanh"),
}


def gate(x: Tensor, activation: Activation, slope: Callable[..., Tensor]) -> Tensor:
    """activation(first half) ⊙ second half of the last dimension; `slope` is the activation's of `SLOPES`."""
    if learns(x):
        return _Gate.apply(x, activation, slope)  # type: ignore[no-any-return, no-untyped-call]
    first, second = x.chunk(2, dim=-1)
    return activation(first) * second


class _Gate(torch.autograd.Function):
    """Both halves' gradients are written where they belong, rather than joined."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, activation: Activation, slope: Callable[..., Tensor]) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        active = activation(first)
        ctx.slope = slope
        ctx.save_for_backward(x, active)
        return active * second

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        x, active = ctx.saved_tensors
        first, second = x.chunk(2, dim=-1)
        out = torch.empty_like(x)
        to_first, to_second = out.chunk(2, dim=-1)
        torch.mul(gradient, active, out=to_second)
        ctx.slope(gradient * second, first, grad_input=to_first)
        return out, None, None


def gate_apart(first: Tensor, second: Tensor, activation: Activation, slope: Callable[..., Tensor]) -> Tensor:
    """activation(first) ⊙ second; the same of halves that lie apart."""
    if learns(first):
        return _GateApart.apply(first, second, activation, slope)  # type: ignore[no-any-return, no-untyped-call]
    return activation(first) * second


class _GateApart(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, first: Tensor, second: Tensor, activation: Activation, slope: Callable[..., Tensor]
    ) -> Tensor:
        active = activation(first)
        ctx.slope = slope
        ctx.save_for_backward(first, second, active)
        return active * second

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:  # type: ignore[override]
        first, second, active = ctx.saved_tensors
        to_first = gradient * second
        ctx.slope(to_first, first, grad_input=to_first)
        return to_first, gradient * active, None, None


class RMSNorm(nn.RMSNorm):
    """x / √(mean of x² + ε) ⊙ weight, over the last dimension (Zhang and Sennrich 2019, arXiv:1910.07467).

    Torch has one kernel for it on a GPU; on a CPU it composes it of many.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) → (…, D)."""
        exact = x.dtype == self.weight.dtype and x.dtype in (torch.float32, torch.float64)
        if exact and x.device.type == "cpu" and learns(x):
            return _RootMeanSquare.apply(x, self.weight, self.eps)  # type: ignore[no-any-return, no-untyped-call]
        return super().forward(x)


class _RootMeanSquare(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight_D, inverse)
        return (x * inverse).mul_(weight_D)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        """By the kernel for layer normalisation, told that the means are 0: what it takes off for the mean having been
        subtracted is added again."""
        x, weight_D, inverse = ctx.saved_tensors
        width, gradient = x.shape[-1], gradient.contiguous()
        to_x, to_weight_D, _ = _aten.native_layer_norm_backward(
            gradient, x, [width], torch.zeros_like(inverse), inverse, weight_D, None, [True, True, False]
        )
        centring = (gradient @ weight_D).unsqueeze(-1).mul_(inverse).div_(width)
        return to_x.add_(centring), to_weight_D, None
