"""The cross-entropy in pieces against torch's with all scores at once, values, gradients and what it keeps."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_modules.transformer import cross_entropy
from lightning_modules.transformer.cross_entropy import linear_cross_entropy

WIDTH, ENTRIES = 6, 40
PIECE = cross_entropy.PIECE


def drawn(positions: int, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> tuple[list[Tensor], Tensor]:
    """Hidden vectors, matrix, bias; targets."""
    torch.manual_seed(positions)
    shapes = ((positions, WIDTH), (ENTRIES, WIDTH), (ENTRIES,))
    factors = [(scale * torch.randn(shape)).to(dtype).requires_grad_() for shape in shapes]
    return factors, torch.randint(0, ENTRIES, (positions,))


def plain(factors: list[Any], target_N: Tensor, smoothing: float) -> Tensor:
    logits_NV = functional.linear(*factors)
    return functional.cross_entropy(logits_NV, target_N, reduction="sum", label_smoothing=smoothing)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("positions", [0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE + 17])
def test_it_and_its_gradients_are_those_of_all_scores_at_once(positions: int, biased: bool, smoothing: float) -> None:
    (hidden_ND, weight_VD, bias_V), target_N = drawn(positions)
    factors = [hidden_ND, weight_VD, bias_V if biased else None]
    ours, expected = linear_cross_entropy(*factors, target_N, smoothing), plain(factors, target_N, smoothing)
    assert ours.dtype == torch.float64
    torch.testing.assert_close(ours, expected)
    learned = [factor for factor in factors if factor is not None]
    got, wanted = (torch.autograd.grad(3.7 * loss, learned) for loss in (ours, expected))
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-11, rtol=1e-9)


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_scores_however_far_apart_give_no_infinity(scale: float) -> None:
    factors, target_N = drawn(50, torch.float32, scale)
    ours = linear_cross_entropy(*factors, target_N, 0.0)
    torch.testing.assert_close(ours, plain(factors, target_N, 0.0))
    for one, other in zip(
        torch.autograd.grad(ours, factors), torch.autograd.grad(plain(factors, target_N, 0.0), factors), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-4 * scale, rtol=1e-4)


class Products(TorchDispatchMode):
    """Counts products of matrices."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("weight_learns", "bias_learns"), [(True, True), (True, False), (False, True), (False, False)])
def test_a_frozen_matrix_costs_no_product(weight_learns: bool, bias_learns: bool) -> None:
    factors, target_N = drawn(2 * PIECE)
    factors[1].requires_grad_(weight_learns)
    factors[2].requires_grad_(bias_learns)
    with Products() as products:
        ours = linear_cross_entropy(factors[0], factors[1], factors[2], target_N, 0.1)
    assert products.count == (2 * 3 if weight_learns else 2 * 2)
    learned = [factor for factor in factors if factor.requires_grad]
    got, wanted = (torch.autograd.grad(loss, learned) for loss in (ours, plain(factors, target_N, 0.1)))
    torch.testing.assert_close(got, wanted, atol=1e-11, rtol=1e-9)


def test_it_can_be_asked_twice_and_for_nothing() -> None:
    factors, target_N = drawn(PIECE + 5)
    loss = linear_cross_entropy(*factors, target_N, 0.0)
    first = torch.autograd.grad(loss, factors, retain_graph=True)
    second = torch.autograd.grad(2 * loss, factors)
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(2 * one, other)
    with torch.no_grad():
        assert not linear_cross_entropy(*factors, target_N, 0.0).requires_grad
    frozen = [factors[0], factors[1].detach(), None]
    (gradient,) = torch.autograd.grad(linear_cross_entropy(*frozen, target_N, 0.0), factors[:1])
    (expected,) = torch.autograd.grad(plain(frozen, target_N, 0.0), factors[:1])
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("half", ["weights", "autocast"])
def test_bf16_is_for_the_products_alone(half: str) -> None:
    (hidden_ND, weight_VD, bias_V), target_N = drawn(PIECE + 9, torch.float32)
    exact = plain([hidden_ND, weight_VD, bias_V], target_N, 0.0)
    wanted = torch.autograd.grad(exact, [hidden_ND, weight_VD, bias_V])
    given = [hidden_ND, weight_VD, bias_V]
    if half == "weights":
        given = [factor.detach().bfloat16().requires_grad_() for factor in given]
    with torch.autocast("cpu", torch.bfloat16, enabled=half == "autocast"):
        loss = linear_cross_entropy(*given, target_N, 0.0)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=1e-3, atol=0)
    for one, factor, other in zip(torch.autograd.grad(loss, given), given, wanted, strict=True):
        assert one.dtype == factor.dtype
        torch.testing.assert_close(one.float(), other, atol=2e-2 * float(other.abs().max()), rtol=2e-2)


def test_between_the_passes_it_keeps_gradients_of_its_factors_and_no_scores() -> None:
    factors, target_N = drawn(4 * PIECE)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        linear_cross_entropy(*factors, target_N, 0.1)
    assert sum(kept.values()) == sum(factor.nbytes for factor in factors)


@pytest.mark.parametrize(
    ("smoothing", "empty", "compiled"), [(0.0, 0, False), (0.0, 24, False), (0.1, 0, False), (0.1, 24, True)]
)
def test_what_is_compiled_for_gpus_is_the_same(smoothing: float, empty: int, compiled: bool) -> None:
    factors, target_N = drawn(50)
    score_NV = functional.linear(*factors).detach()
    score_NW = functional.pad(score_NV, (0, empty), value=7.0)
    learned_NV = score_NV.clone().requires_grad_()
    expected = functional.cross_entropy(learned_NV, target_N, reduction="sum", label_smoothing=smoothing)
    (gradient_NV,) = torch.autograd.grad(expected, learned_NV)
    ours = torch.compile(cross_entropy.nats_and_slope) if compiled else cross_entropy.nats_and_slope
    nats, slope_NW = ours(score_NW, target_N[:, None], smoothing, ENTRIES, torch.float64)
    torch.testing.assert_close(nats, expected)
    torch.testing.assert_close(slope_NW, functional.pad(gradient_NV, (0, empty)))
    rough, rough_NW = ours(score_NW.bfloat16(), target_N[:, None], smoothing, ENTRIES, torch.float32)
    assert (rough.dtype, rough_NW.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(rough, expected.float(), rtol=0.01, atol=0.0)
