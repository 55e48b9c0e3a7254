"""Dropout (Srivastava et al. 2014; section 5.4 of the 2017 paper), from random bits that a CPU makes quickly.

Torch draws a number for each element, which is most of what its dropout costs on a CPU. Here a 64-bit number serves
four, 16 bits each: the share that is dropped is a multiple of 1/65,536, and what is kept is divided by the very share
that is, so that the mean is exact. `python -m benchmarks.dropout` measures both. For the backward pass a byte an
element is kept. Where nothing is dropped nothing runs.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

_STEPS = 2**16  # values of 16 random bits


def dropout(x: Tensor, share: float) -> Tensor:
    """x with `share` (0 ≤ share < 1) of its elements set to zero, the others scaled so that the mean stays.

    The elements follow from torch's generator, as `torch.manual_seed` sets it.
    """
    if share == 0:
        return x
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return functional.dropout(x, share)
    return _Dropout.apply(x, share)  # type: ignore[no-any-return, no-untyped-call]


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, share: float) -> Tensor:
        # The least of 2^16 steps is dropped rather than none, the last but one rather than all.
        dropped = min(max(round(share * _STEPS), 1), _STEPS - 1)
        draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        kept = (draws.view(torch.int16)[: x.numel()] >= dropped - _STEPS // 2).view(torch.int8)
        ctx.scale = _STEPS / (_STEPS - dropped)
        ctx.save_for_backward(kept)
        return _scaled(x, kept, ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (kept,) = ctx.saved_tensors
        return _scaled(gradient, kept, ctx.scale), None


def _scaled(x: Tensor, kept: Tensor, scale: float) -> Tensor:
    """Scales what is kept. On a CPU products of two types are slow, and so is making numbers of bools, not of int8."""
    return kept.view(x.shape).to(x.dtype).mul_(scale).mul_(x)
