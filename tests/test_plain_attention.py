"""Attention written out in bfloat16: how far off it is, when it is chosen, and what packed rows then do."""

from typing import Any

import pytest
import torch
from tiny import model
from torch import Tensor, nn
from torch.nn import functional

from lightning_modules.batching import make_batch
from lightning_modules.loss import batch_loss
from lightning_modules.objectives import CausalLM
from lightning_modules.transformer import plain_attention
from lightning_modules.transformer.attention import Attention, expect_same_shapes
from lightning_modules.transformer.masks import Visibility
from lightning_modules.transformer.stack import APART_FROM

ROWS, HEADS, WIDTH = 2, 4, 64


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """In which precision torch's own attention is asked."""
    asked: list[torch.dtype] = []
    kernel = functional.scaled_dot_product_attention

    def noted(q: Tensor, *others: Any, **options: Any) -> Tensor:
        asked.append(q.dtype)
        return kernel(q, *others, **options)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", noted)
    return asked


def errors(way: Any, given: list[Tensor], weighting: Tensor, exact: list[Tensor]) -> list[float]:
    """Of the result and of each gradient: its distance from the exact one, as a share of that."""
    inputs = [x.clone().requires_grad_() for x in given]
    out = way(*inputs)
    found = [out, *torch.autograd.grad((out * weighting).sum(), inputs)]
    return [
        float((one.double() - other).detach().norm() / other.detach().norm())
        for one, other in zip(found, exact, strict=True)
    ]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", [64, 512])
def test_gradients_are_off_by_less_than_two_and_a_half_times_what_the_fused_kernels_are(
    length: int, causal: bool
) -> None:
    torch.manual_seed(0)
    given = [1.5 * torch.randn(ROWS, HEADS, length, WIDTH).bfloat16() for _ in range(3)]
    weighting = torch.randn(ROWS, HEADS, length, WIDTH).bfloat16()

    def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(q, k, v, is_causal=causal)

    inputs = [x.double().requires_grad_() for x in given]
    out = fused(*inputs)
    exact = [out, *torch.autograd.grad((out * weighting).sum(), inputs)]
    theirs = errors(fused, given, weighting, exact)
    ours = errors(lambda q, k, v: plain_attention.attention(q, k, v, None, causal, None), given, weighting, exact)
    assert max(ours) < 0.01
    assert max(ours[1:]) < 2.5 * max(theirs[1:])


@pytest.mark.usefixtures("matrix_units")
def test_it_is_for_learning_in_half_precision_on_cpus_with_matrix_units(monkeypatch: pytest.MonkeyPatch) -> None:
    full = torch.zeros(1, requires_grad=True)
    half = full.bfloat16()
    assert plain_attention.is_faster(half, 512, 512)
    assert not plain_attention.is_faster(half, 512, 513)
    assert not plain_attention.is_faster(full, 512, 512)
    with torch.autocast("cpu", torch.bfloat16):
        assert plain_attention.is_faster(full, 512, 512)
    with torch.autocast("cpu", torch.float16):
        assert not plain_attention.is_faster(full, 512, 512)
    with torch.no_grad():
        assert not plain_attention.is_faster(half, 512, 512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert not plain_attention.is_faster(half, 512, 512)


@pytest.mark.usefixtures("matrix_units")
@pytest.mark.parametrize(("same_shapes", "dropout"), [(True, 0.0), (True, 0.5), (False, 0.0)])
def test_it_is_left_to_torch_where_shapes_differ_or_weights_are_dropped(
    kernels: list[torch.dtype], same_shapes: bool, dropout: float
) -> None:
    torch.manual_seed(0)
    attention = Attention(model(attention_dropout=dropout).config).bfloat16()
    expect_same_shapes(attention, same_shapes)
    attention(torch.randn(1, 5, attention.query.in_features).bfloat16(), Visibility())
    assert kernels == ([] if same_shapes and not dropout else [torch.float32])


@pytest.mark.usefixtures("matrix_units")
@pytest.mark.parametrize(
    ("columns", "same_shapes", "used"),
    [(APART_FROM, True, set()), (APART_FROM, False, {torch.float32}), (600, True, {torch.float32})],
)
def test_packed_rows_learn_the_same_in_half_precision(
    kernels: list[torch.dtype], columns: int, same_shapes: bool, used: set[torch.dtype]
) -> None:
    """Rows short enough have a mask and the formula, others their documents one by one in float32."""
    net = model(architecture="decoder", positions="rotary", max_length=columns)
    expect_same_shapes(net, same_shapes)
    torch.manual_seed(0)
    ids_BL = torch.randint(6, net.config.vocab_size, (2, columns))
    documents_BL = (torch.rand(2, columns) < 0.05).cumsum(dim=1)

    def gradients(half: bool) -> Tensor:
        corrupted = CausalLM().packed(ids_BL.numpy(), documents_BL.numpy(), 0)
        batch = make_batch(corrupted.source_BS, corrupted.target_BT, net.config, documents=corrupted.documents)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            nats, targets = batch_loss(net, batch, 0.0)
        return nn.utils.parameters_to_vector(torch.autograd.grad(nats / targets, list(net.parameters())))

    exact = gradients(half=False)
    kernels.clear()
    rough = gradients(half=True)
    assert (rough - exact).norm() < 0.05 * exact.norm()
    assert set(kernels) == used
