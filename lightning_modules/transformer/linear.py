"""x·Wᵀ + b by the faster of the two libraries that torch brings for it on a CPU.

Torch multiplies fp32 by MKL, which is Intel's. On an AMD processor oneDNN is faster for the scores of a vocabulary and
for many rows of a wide model, a tenth of a step in all; for few rows and gradients of weights it is slower
(`python -m benchmarks.linear`). The processor decides, not a measurement: so a machine always computes the same bits.
"""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from lightning_modules.transformer import matrix_units

MANY_ROWS, WIDE = 4096, 256  # from which oneDNN is the faster for rows and for their gradient
ENTRIES = 4096  # of a vocabulary, from which it is for their scores


class Linear(nn.Linear):
    """`nn.Linear`, but for how it is computed."""

    same_shapes = False  # whether batches have one shape, told by `expect_same_shapes`

    def forward(self, x: Tensor) -> Tensor:
        """(…, I) → (…, O)."""
        if self.has_many(x):
            return self._parts(x, 1)[0]
        if torch.is_autocast_enabled("cpu") and not self.same_shapes:  # asked first: decoding is never under it
            return linear(x, self.weight, self.bias)
        return super().forward(x)

    def halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(…, I) → (…, O/2) twice, each in one piece of memory, as a gate reads them faster. For an x of many rows."""
        first, second = self._parts(x, 2)
        return first, second

    def has_many(self, x: Tensor) -> bool:
        """Whether x has so many rows that oneDNN multiplies them."""
        many = x.numel() >= MANY_ROWS * self.in_features and min(self.in_features, self.out_features) >= WIDE
        return many and _by_onednn(x, self.weight)

    def _parts(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        return _ManyRows.apply(x, self.weight, self.bias, parts)  # type: ignore[no-any-return, no-untyped-call]


def linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    """(…, I) → (…, O), by torch; for any number of rows."""
    if not matrix_units.multiply(x):
        return functional.linear(x, weight_OI, bias_O)
    x_NI = x.reshape(-1, x.shape[-1])
    out_NO = functional.linear(matrix_units.filled_up(x_NI.to(torch.bfloat16)), weight_OI, bias_O)[: len(x_NI)]
    return out_NO.view(*x.shape[:-1], out_NO.shape[-1])


def scores(hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None) -> Tensor:
    """Hidden vectors (…, D) → a score for each entry (…, V)."""
    given = [hidden_ND, weight_VD] if bias_V is None else [hidden_ND, weight_VD, bias_V]
    learns = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given)
    if len(weight_VD) >= ENTRIES and not learns and _by_onednn(hidden_ND, weight_VD):
        return _onednn(hidden_ND, weight_VD, bias_V)
    return functional.linear(hidden_ND, weight_VD, bias_V)


class _ManyRows(torch.autograd.Function):
    """Products with so many equal parts of a weight's rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_OI: Tensor, bias_O: Tensor | None, parts: int) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x, weight_OI)
        biases = [None] * parts if bias_O is None else bias_O.chunk(parts)
        return tuple(_onednn(x, weight, bias) for weight, bias in zip(weight_OI.chunk(parts), biases, strict=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """By oneDNN for the rows, the parts summed as it multiplies; by MKL, faster there, for the weight."""
        x, weight_OI = ctx.saved_tensors
        wants_x, wants_weight, wants_bias, _ = ctx.needs_input_grad
        x_NI, weights = x.reshape(-1, x.shape[-1]), weight_OI.chunk(len(gradients))
        flat = [gradient.reshape(-1, gradient.shape[-1]) for gradient in gradients]
        to_x_NI = to_weight_OI = None
        if wants_x:
            for gradient_NO, weight in zip(flat, weights, strict=True):
                # The copy costs less than oneDNN loses on a matrix that lies the other way.
                to_x_NI = _onednn(gradient_NO, weight.T.contiguous(), None, add_to=to_x_NI)
        if wants_weight:
            to_weight_OI = torch.empty_like(weight_OI)
            for gradient_NO, out in zip(flat, to_weight_OI.chunk(len(flat)), strict=True):
                torch.mm(gradient_NO.T, x_NI, out=out)
        to_bias_O = torch.cat([gradient_NO.sum(dim=0) for gradient_NO in flat]) if wants_bias else None
        return None if to_x_NI is None else to_x_NI.view_as(x), to_weight_OI, to_bias_O, None


def _onednn(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None, add_to: Tensor | None = None) -> Tensor:
    """Without a gradient; by operators of torch's own compiler, there being no public one for dense tensors."""
    by = torch.ops.mkldnn._linear_pointwise
    if add_to is None:
        return by(x, weight_OI, bias_O, "none", [], "")  # type: ignore[no-any-return]
    return by.binary(x, add_to, weight_OI, bias_O, "add")  # type: ignore[no-any-return]


def _by_onednn(x: Tensor, weight: Tensor) -> bool:
    plain = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32
    recorded = torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu")
    return plain and not recorded and mkl_is_slow()


@cache
def mkl_is_slow() -> bool:
    """Whether torch has MKL and oneDNN, and the processor is AMD's."""
    processor = Path("/proc/cpuinfo")
    both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return both and processor.exists() and "AuthenticAMD" in processor.read_text()
