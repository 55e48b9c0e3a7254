"""Products of bfloat16 whose rows are filled up: the numbers are the same, and few shapes come of many."""

from typing import Any

import pytest
import torch
from tiny import model
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_modules.transformer.attention import expect_same_shapes
from lightning_modules.transformer.cross_entropy import PIECE, linear_cross_entropy
from lightning_modules.transformer.linear import Linear, linear
from lightning_modules.transformer.matrix_units import ROWS, filled_up, multiply

pytestmark = pytest.mark.usefixtures("matrix_units")
INPUTS, OUTPUTS = 24, 40


class Products(TorchDispatchMode):
    """Notes the shapes of all products of bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[torch.Size, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        matrices = [given for given in args if isinstance(given, Tensor) and given.ndim == 2]
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm) and matrices[-1].dtype == torch.bfloat16:
            self.shapes.add(tuple(matrix.shape for matrix in matrices))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [(0,), (1,), (ROWS,), (3, 50), (2, 5, 40)])
def test_values_and_gradients_are_those_of_torch(rows: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    layer, results = Linear(INPUTS, OUTPUTS, bias=bias), []
    x = torch.randn(*rows, INPUTS, requires_grad=True)
    for way in (layer, lambda x: functional.linear(x, layer.weight, layer.bias)):
        with torch.autocast("cpu", torch.bfloat16):
            out = way(x)
        assert out.dtype == torch.bfloat16
        results.append([out, *torch.autograd.grad(out.float().square().sum(), [x, *layer.parameters()])])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(
            ours, theirs, atol=0.01 * float(theirs.detach().abs().max() if theirs.numel() else 0), rtol=0
        )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("positions", [1, ROWS, PIECE + 1, 2 * PIECE])
def test_a_loss_of_any_number_of_positions(positions: int, smoothing: float) -> None:
    torch.manual_seed(0)
    given = [torch.randn(positions, INPUTS), torch.randn(300, INPUTS) / 5, torch.randn(300)]
    target_N = torch.randint(300, (positions,))
    inputs = [x.requires_grad_() for x in given]
    with torch.autocast("cpu", torch.bfloat16):
        ours = linear_cross_entropy(*inputs, target_N, smoothing)
    theirs = functional.cross_entropy(functional.linear(*inputs), target_N, label_smoothing=smoothing, reduction="sum")
    torch.testing.assert_close(ours, theirs, rtol=0.01, atol=0)
    pairs = zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs), strict=True)
    for one, other in pairs:
        assert (one - other).norm() < 0.02 * other.norm()


@pytest.mark.parametrize("same_shapes", [False, True])
def test_batches_of_all_shapes_make_products_of_few(same_shapes: bool) -> None:
    net = model()
    expect_same_shapes(net, same_shapes)
    with Products() as products, torch.autocast("cpu", torch.bfloat16):
        seen = []
        for length in range(5, 25):
            source_BS = torch.randint(6, net.config.vocab_size, (length % 4 + 2, length))
            out = net(source_BS, source_BS[:, : length // 2])
            out.float().sum().backward()
            seen.append(len(products.shapes))
    assert seen[0] > 0
    assert (seen[-1] == seen[0]) != same_shapes, "rows are filled up where it was not told that all are alike"


def test_only_products_of_bfloat16_on_such_cpus_are_filled_up(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(3, INPUTS)
    assert not multiply(x)
    assert not multiply(x.double())
    assert multiply(x.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert multiply(x)
        assert not multiply(x.double())
    with torch.autocast("cpu", torch.float16):
        assert not multiply(x)
    weight = torch.randn(OUTPUTS, INPUTS)
    assert torch.equal(linear(x, weight, None), functional.linear(x, weight))
    program = torch.export.export(nn.Sequential(Linear(INPUTS, OUTPUTS)).bfloat16(), (x.bfloat16(),))
    assert "pad" not in str(program.graph)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert not multiply(x.bfloat16())


def test_filling_up_adds_zeros_to_the_next_multiple_alone() -> None:
    x = torch.ones(ROWS + 1, 2)
    assert filled_up(x).shape == (2 * ROWS, 2)
    assert filled_up(x).sum() == x.sum()
    assert filled_up(x[:ROWS]).data_ptr() == x.data_ptr()
