"""Dropout against Bernoulli's distribution; its gradient, its seed, and models that do not train."""

from typing import Any

import pytest
import torch
from tiny import batch, model
from torch import Tensor

from lightning_modules.transformer.dropout import dropout

SHARES = (0.001, 0.1, 0.25, 0.5, 0.9)


@pytest.mark.parametrize("share", SHARES)
def test_what_is_dropped_is_bernoulli(share: float) -> None:
    torch.manual_seed(0)
    draws, elements = 200, 5_000
    dropped = (dropout(torch.ones(draws, elements), share) == 0).double()
    expected, variance = share, share * (1 - share)
    count = draws * elements
    assert dropped.mean().item() == pytest.approx(expected, abs=5 * (variance / count) ** 0.5 + 2**-16)
    # Sums of independent draws have the sum of the variances: across an input, and across inputs.
    for sums, number in ((dropped.sum(1), elements), (dropped.sum(0), draws)):
        deviation_of_variance = (2 / (len(sums) - 1)) ** 0.5
        assert sums.var().item() == pytest.approx(number * variance, rel=5 * deviation_of_variance)
    # Neighbours share a draw of 64 bits, not their fate.
    for distance in (1, 2, 3, 4):
        both = (dropped[:, :-distance] * dropped[:, distance:]).mean().item()
        assert both == pytest.approx(share**2, abs=6 * (share**2 / count) ** 0.5 + 1e-5)


@pytest.mark.parametrize("share", SHARES)
def test_the_mean_stays(share: float) -> None:
    torch.manual_seed(0)
    kept = dropout(torch.full((1000, 1000), 3.0), share)
    assert len(kept.unique()) == 2
    assert kept.mean().item() == pytest.approx(3.0, abs=5 * 3 * (share / (1 - share)) ** 0.5 / 1000)
    assert kept.max().item() == pytest.approx(3 / (1 - share), rel=2**-15 / (1 - share))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 5, 7), (0, 4)])
def test_the_gradient_is_what_was_multiplied_with(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = (torch.rand(shape).to(dtype) + 1).requires_grad_()
    out, cotangent = dropout(x, 0.3), torch.randn(shape).to(dtype)
    out.backward(cotangent)
    assert out.shape == x.shape
    assert out.dtype == x.grad.dtype == dtype
    factor = (out / x).detach()
    torch.testing.assert_close(x.grad, cotangent * factor)


def test_elements_that_do_not_lie_in_order_are_dropped_alike() -> None:
    torch.manual_seed(0)
    x = torch.rand(6, 4, dtype=torch.float64).T.requires_grad_()
    out = dropout(x, 0.5)
    out.sum().backward()
    torch.testing.assert_close(x.grad, (out / x).detach())
    assert sorted(x.grad.unique().tolist()) == [0.0, 2.0]


def test_a_byte_an_element_is_kept_for_the_backward_pass() -> None:
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        dropout(torch.ones(30, 50, requires_grad=True), 0.1)
    assert sum(tensor.untyped_storage().nbytes() for tensor in kept) == 30 * 50


def test_the_seed_decides_and_draws_differ() -> None:
    x = torch.ones(100, 100)
    torch.manual_seed(1)
    first, second = dropout(x, 0.5), dropout(x, 0.5)
    torch.manual_seed(1)
    assert torch.equal(dropout(x, 0.5), first)
    assert not torch.equal(first, second)


def test_nothing_is_drawn_where_nothing_is_dropped() -> None:
    x, before = torch.ones(3), torch.get_rng_state()
    assert dropout(x, 0.0) is x
    for dropping, training in ((0.5, False), (0.0, True)):
        made = model(dropout=dropping).train(training)
        made(*batch(1, [5, 4], [3, 4]))
        before = torch.get_rng_state()
        made(*batch(1, [5, 4], [3, 4]))
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("architecture", ["encoder", "decoder", "encoder_decoder"])
def test_a_model_that_trains_drops_and_its_exported_program_does_not(architecture: str) -> None:
    made: Any = model(architecture=architecture, dropout=0.5)
    inputs = batch(1, [5, 4], [3, 4])[: 1 if architecture == "encoder" else 2]
    exported, plain = torch.export.export(made, inputs).module(), made(*inputs)
    torch.testing.assert_close(exported(*inputs), plain, atol=1e-5, rtol=1e-5)
    made.train()
    assert not torch.isclose(made(*inputs), plain, atol=1e-3).all()
