"""Products by oneDNN against `nn.Linear` and `functional.linear`, where they are taken, and that bits do not change."""

import hashlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from tiny import model
from torch import Tensor, nn
from torch.nn import functional

from lightning_modules.transformer import linear
from lightning_modules.transformer.linear import ENTRIES, MANY_ROWS, WIDE, Linear, scores
from lightning_modules.transformer.stack import recompute_activations

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(),  # type: ignore[no-untyped-call]
    reason="this torch has no oneDNN",
)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """As on an AMD processor; the shapes that oneDNN is given."""
    shapes: list[torch.Size] = []
    by_onednn = linear._onednn

    def noted(x: Tensor, *rest: Tensor | None, **more: Tensor | None) -> Tensor:
        shapes.append(x.shape)
        return by_onednn(x, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(linear, "mkl_is_slow", lambda: True)
    monkeypatch.setattr(linear, "_onednn", noted)
    return shapes


def pair(inputs: int = WIDE, outputs: int = WIDE + 44, bias: bool = True) -> tuple[Linear, nn.Linear]:
    """Ours and torch's with the same weights."""
    torch.manual_seed(0)
    ours, plain = Linear(inputs, outputs, bias=bias), nn.Linear(inputs, outputs, bias=bias)
    plain.load_state_dict(ours.state_dict())
    return ours, plain


def above_of(layout: str, shape: torch.Size) -> Tensor:
    """A gradient from above, as it may lie in memory."""
    drawn = {"in order": shape, "turned": (*shape[:-2], shape[-1], shape[-2]), "one for all": (shape[-1],)}[layout]
    above = torch.randn(drawn)
    return above.mT if layout == "turned" else above.expand(shape)


def halved(layer: nn.Linear, x: Tensor) -> Tensor:
    """Both halves' product."""
    first, second = layer.halves(x) if isinstance(layer, Linear) else layer(x).chunk(2, dim=-1)
    return first * second


@pytest.mark.parametrize("layout", ["in order", "turned", "one for all"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("way", [lambda layer, x: layer(x), halved], ids=["whole", "halves"])
@pytest.mark.parametrize("rows", [(MANY_ROWS,), (2, 3, MANY_ROWS // 4)])
def test_values_and_gradients_are_those_of_torch(
    taken: list[torch.Size], rows: tuple[int, ...], way: Callable[[nn.Linear, Tensor], Tensor], bias: bool, layout: str
) -> None:
    results = []
    for layer in pair(bias=bias):
        torch.manual_seed(1)
        x = torch.randn(*rows, WIDE, requires_grad=True)
        out = way(layer, x)
        out.backward(above_of(layout, out.shape))
        results.append([out.detach(), x.grad, *[parameter.grad for parameter in layer.parameters()]])
    for got, wanted in zip(*results, strict=True):
        assert got is not None
        assert wanted is not None
        torch.testing.assert_close(got, wanted, atol=1e-3, rtol=1e-4)
    assert len(taken) == (4 if way is halved else 2)  # forward, and the gradient of x


@pytest.mark.parametrize("frozen", ["x", "weight", "bias"])
def test_what_is_frozen_gets_no_gradient_and_the_rest_the_same(taken: list[torch.Size], frozen: str) -> None:
    results = []
    for layer in pair():
        torch.manual_seed(1)
        x = torch.randn(MANY_ROWS, WIDE, requires_grad=frozen != "x")
        for name, parameter in layer.named_parameters():
            parameter.requires_grad_(name != frozen)
        layer(x).sum().backward()
        results.append([x.grad, *[parameter.grad for parameter in layer.parameters()]])
    for got, wanted in zip(*results, strict=True):
        assert (got is None) == (wanted is None)
        if got is not None:
            torch.testing.assert_close(got, wanted, atol=1e-3, rtol=1e-4)
    assert sum(got is None for got in results[0]) == 1
    assert taken


@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"),
    [(MANY_ROWS - 1, WIDE, WIDE), (MANY_ROWS, WIDE - 1, WIDE), (MANY_ROWS, WIDE, WIDE - 1)],
)
def test_smaller_products_are_left_to_torch(taken: list[torch.Size], rows: int, inputs: int, outputs: int) -> None:
    ours, plain = pair(inputs, outputs)
    x = torch.randn(rows, inputs)
    assert torch.equal(ours(x), plain(x))
    assert not taken


def test_neither_other_precisions_nor_recorded_programs_take_it(taken: list[torch.Size]) -> None:
    ours, plain = pair()
    x = torch.randn(MANY_ROWS, WIDE)
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(x).dtype == torch.bfloat16
    assert torch.equal(ours.double()(x.double()), plain.double()(x.double()))
    program = torch.export.export(nn.Sequential(Linear(WIDE, WIDE)), (x,))
    assert "mkldnn" not in str(program.graph)
    assert not taken


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("by_columns", [True, False])
@pytest.mark.parametrize("entries", [ENTRIES - 1, ENTRIES])
@pytest.mark.parametrize("rows", [(1,), (0,), (100,), (3, 5)])
def test_scores_of_a_vocabulary(
    taken: list[torch.Size], rows: tuple[int, ...], entries: int, by_columns: bool, bias: bool
) -> None:
    torch.manual_seed(0)
    weight_VD = torch.randn(24, entries).T if by_columns else torch.randn(entries, 24)
    hidden_ND = torch.randn(*rows, 24)
    bias_V = torch.randn(entries) if bias else None
    torch.testing.assert_close(
        scores(hidden_ND, weight_VD, bias_V), functional.linear(hidden_ND, weight_VD, bias_V), atol=1e-4, rtol=1e-4
    )
    assert bool(taken) == (entries >= ENTRIES)


@pytest.mark.parametrize("learnt", ["hidden", "weight", "bias"])
def test_scores_that_learn_are_torchs(taken: list[torch.Size], learnt: str) -> None:
    given = {"hidden": torch.randn(7, 24), "weight": torch.randn(ENTRIES, 24), "bias": torch.randn(ENTRIES)}
    given[learnt].requires_grad_()
    scores(*given.values()).sum().backward()
    assert given[learnt].grad is not None
    assert not taken


@pytest.mark.parametrize(
    ("activation", "bias", "recompute"), [("swiglu", False, True), ("swiglu", True, False), ("gelu", True, False)]
)
def test_a_model_learns_the_same(
    taken: list[torch.Size], monkeypatch: pytest.MonkeyPatch, activation: str, bias: bool, recompute: bool
) -> None:
    shape = {"d_model": WIDE, "d_ff": WIDE + 6, "vocab_size": ENTRIES, "activation": activation, "bias": bias}
    ids_BL = torch.randint(5, ENTRIES, (32, MANY_ROWS // 32))
    results = []
    for slow in (True, False):
        monkeypatch.setattr(linear, "mkl_is_slow", lambda slow=slow: slow)
        made = model(1, architecture="decoder", norm_type="rms", **shape).train()
        recompute_activations(made, recompute)
        loss = made.cross_entropy(made(ids_BL[:, :0], ids_BL).flatten(0, 1), ids_BL.roll(-1, 1).flatten(), 0.1)
        loss.backward()
        results.append({"loss": loss.detach()} | {name: weight.grad for name, weight in made.named_parameters()})
        before, taken[:] = len(taken), []
        assert bool(before) == slow
    with_it, without = results
    for name, wanted in without.items():
        torch.testing.assert_close(with_it[name], wanted, atol=1e-3 * float(wanted.abs().max()), rtol=1e-3)


@pytest.mark.skipif(not shutil.which("lscpu"), reason="lscpu is not installed")
def test_the_processor_is_told_from_its_maker() -> None:
    told = subprocess.run(["lscpu"], env={"LC_ALL": "C"}, capture_output=True, text=True, check=True).stdout
    by_amd = re.search(r"Vendor ID:\s+AuthenticAMD", told) is not None
    assert linear.mkl_is_slow() == (torch.backends.mkl.is_available() and by_amd)


BITS = f"""
import hashlib, torch
from lightning_modules.transformer import linear
linear.mkl_is_slow = lambda: True
torch.manual_seed(0)
layer, x = linear.Linear({WIDE}, {WIDE}), torch.randn({MANY_ROWS}, {WIDE}, requires_grad=True)
out = layer(x)
out.square().sum().backward()
parts = [out.detach(), x.grad, layer.weight.grad, linear.scores(x.detach(), torch.randn({ENTRIES}, {WIDE}), None)]
print(hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest())
"""


def test_another_process_computes_the_same_bits() -> None:
    told = {
        subprocess.run([sys.executable, "-c", BITS], capture_output=True, text=True, check=True).stdout.strip()
        for _ in range(2)
    }
    assert len(told) == 1
    assert len(told.pop()) == hashlib.sha256().digest_size * 2
