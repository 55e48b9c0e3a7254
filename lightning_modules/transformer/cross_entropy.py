"""Cross-entropy of scores over the vocabulary, of which never more exist than those of a piece of the positions.

The scores of a piece are turned into their gradient where they stand, and that is multiplied out at once, so nothing is
reckoned twice: the same three products of matrices as with all scores at once (Hsu et al. 2024, arXiv:2410.10989,
section 3.2). Memory: the scores of a piece, and until the backward pass the gradients of hidden vectors and of the
matrix, instead of two numbers for each position and token. On a CPU faster, too: a piece fits the cache
(`python -m benchmarks.loss`). On a GPU two compiled kernels read the scores as the product wrote them.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from lightning_modules.transformer import matrix_units
from lightning_modules.transformer.linear import scores

PIECE = 512  # positions; from 256 to 1,024 are as fast on a CPU
GPU_PIECE = 8192  # larger, as more is at work at once: 3 % faster than 4,096 on an H200, and 10 % than 2,048
ALIGNED = 64  # entries: products of bf16 whose sides are no multiple of 8 take a GPU four times as long


def linear_cross_entropy(
    hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, target_N: Tensor, label_smoothing: float
) -> Tensor:
    """Σₙ of the cross-entropy of softmax(hidden·Wᵀ + bias) in nats, in float32 at least.

    Equals `cross_entropy(linear(hidden, weight, bias), target, reduction="sum", label_smoothing=label_smoothing)`, and
    like it the products are autocast's. Its gradient cannot be differentiated again.
    """
    device = hidden_ND.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_ND.dtype
    learns = torch.is_grad_enabled()
    return _Pieces.apply(hidden_ND, weight_VD, bias_V, target_N, label_smoothing, dtype, learns)  # type: ignore[no-any-return, no-untyped-call]


class _Pieces(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        target_N: Tensor,
        label_smoothing: float,
        dtype: torch.dtype,
        learns: bool,
    ) -> Tensor:
        exact = torch.promote_types(hidden_ND.dtype, torch.float32)
        loss, piece = hidden_ND.new_zeros((), dtype=exact), GPU_PIECE if hidden_ND.is_cuda else PIECE
        with torch.autocast(hidden_ND.device.type, enabled=False):
            entries = len(weight_VD)
            empty = -entries % ALIGNED if hidden_ND.is_cuda else 0  # W: entries, and as many empty ones
            weight_WD, bias_W = weight_VD.to(dtype), None if bias_V is None else bias_V.to(dtype)
            if empty:
                weight_WD = functional.pad(weight_WD, (0, 0, 0, empty))
                bias_W = None if bias_W is None else functional.pad(bias_W, (0, empty))
            # Of a frozen matrix (LoRA, frozen embeddings that are tied) neither memory nor a product is spent.
            _, to_weight, to_bias = ctx.needs_input_grad[:3]
            learning = weight_WD if to_weight else None, bias_W if to_bias else None
            gradients = _Gradients(hidden_ND, *learning, exact) if learns else None
            for start in range(0, len(hidden_ND), piece):
                hidden_PD = hidden_ND[start : start + piece].to(dtype)
                target_P1 = target_N[start : start + piece, None]
                if matrix_units.multiply(hidden_PD):
                    hidden_PD = matrix_units.filled_up(hidden_PD)
                score_PW = scores(hidden_PD, weight_WD, bias_W)[: len(target_P1)]
                if score_PW.is_cuda:
                    nats, slope_PW = _compiled()(score_PW, target_P1, label_smoothing, entries, exact)
                else:
                    nats, slope_PW = _nats_and_slope(score_PW.to(exact), target_P1, label_smoothing)
                loss += nats
                if gradients is not None:
                    gradients.add(start, hidden_PD, weight_WD, slope_PW.to(dtype))
        if gradients is not None:
            to_weight_VD = None if gradients.weight_WD is None else gradients.weight_WD[:entries].to(weight_VD.dtype)
            to_bias_V = None if gradients.bias_W is None else gradients.bias_W[:entries]
            ctx.save_for_backward(gradients.hidden_ND, to_weight_VD, to_bias_V)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        factors = [None if saved is None else saved * gradient.to(saved.dtype) for saved in ctx.saved_tensors]
        return *factors, None, None, None, None


def _nats_and_slope(score_PV: Tensor, target_P1: Tensor, label_smoothing: float) -> tuple[Tensor, Tensor]:
    """Sum of the cross-entropies, and their gradient by the scores, in whose memory it is."""
    entries, certain = score_PV.shape[1], 1 - label_smoothing
    expected_P1 = certain * score_PV.gather(1, target_P1)
    if label_smoothing:
        expected_P1 += label_smoothing * score_PV.mean(dim=1, keepdim=True)
    greatest_P1 = score_PV.amax(dim=1, keepdim=True)
    power_PV = score_PV.sub_(greatest_P1).exp_()
    total_P1 = power_PV.sum(dim=1, keepdim=True)
    nats = (total_P1.log() + greatest_P1 - expected_P1).sum()
    slope_PV = power_PV.div_(total_P1)
    if label_smoothing:
        slope_PV -= label_smoothing / entries
    return nats, slope_PV.scatter_add_(1, target_P1, slope_PV.new_full(target_P1.shape, -certain))


def nats_and_slope(
    score_PW: Tensor, target_P1: Tensor, label_smoothing: float, entries: int, exact: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The same for a compiler, of the first `entries` columns: each score is read twice and its gradient written once,
    both in the scores' precision; that of the other columns is 0.

    As separate operations it would be eight passes over memory, more than the products cost a GPU.
    """
    exact_PV, certain = score_PW[:, :entries].to(exact), 1 - label_smoothing
    total_P1 = exact_PV.logsumexp(dim=1, keepdim=True)
    expected_P1 = certain * score_PW.gather(1, target_P1).to(exact)
    if label_smoothing:
        expected_P1 = expected_P1 + label_smoothing * exact_PV.mean(dim=1, keepdim=True)
    column_V = torch.arange(entries, device=score_PW.device)
    wanted_PV = torch.where(column_V == target_P1, certain, 0.0) + label_smoothing / entries
    slope_PV = ((exact_PV - total_P1).exp() - wanted_PV).to(score_PW.dtype)
    return (total_P1 - expected_P1).sum(), functional.pad(slope_PV, (0, score_PW.shape[1] - entries))


@cache
def _compiled() -> Callable[..., tuple[Tensor, Tensor]]:
    return torch.compile(nats_and_slope)


class _Gradients:
    """Gradients of a sum of cross-entropies, gathered piece by piece: by hidden vectors, and by what else learns."""

    def __init__(self, hidden_ND: Tensor, weight_WD: Tensor | None, bias_W: Tensor | None, exact: torch.dtype) -> None:
        self.hidden_ND = torch.empty_like(hidden_ND)
        self.weight_WD = None if weight_WD is None else torch.zeros_like(weight_WD, dtype=exact)
        self.bias_W = None if bias_W is None else torch.zeros_like(bias_W, dtype=exact)

    def add(self, start: int, hidden_PD: Tensor, weight_WD: Tensor, slope_PW: Tensor) -> None:
        """Of the positions from `start` on; hidden vectors may have been filled up."""
        end = start + len(slope_PW)
        if len(hidden_PD) > len(slope_PW):
            slope_PW = matrix_units.filled_up(slope_PW)
        self.hidden_ND[start:end] = (slope_PW @ weight_WD)[: end - start]
        if self.weight_WD is not None and slope_PW.dtype == self.weight_WD.dtype:
            torch.addmm(self.weight_WD, slope_PW.T, hidden_PD, out=self.weight_WD)
        elif self.weight_WD is not None:
            self.weight_WD += slope_PW.T @ hidden_PD
        if self.bias_W is not None:
            self.bias_W += slope_PW.sum(dim=0)
