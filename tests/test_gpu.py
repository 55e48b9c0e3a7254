"""What runs otherwise on a GPU gives what it gives on a CPU. Skipped where there is none: CI has none."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from lightning_fabric.utilities import move_data_to_device
from tiny import (
    VOCAB_SIZE,
    batch,
    config,
    encoded,
    hardware,
    lively,
    model,
    pairs_split,
    recipe,
    sentences,
    write_store,
)
from torch import Tensor
from torch.nn import functional

from lightning_modules.averaging import MovingAverage
from lightning_modules.batching import Batch
from lightning_modules.callbacks import Checkpoints
from lightning_modules.checkpoint_files import newest_checkpoint
from lightning_modules.datamodule import TextDataModule
from lightning_modules.decoding import Decoding, decode
from lightning_modules.guards import StepGuard, TrainingFailed
from lightning_modules.hardware import choose
from lightning_modules.loss import batch_loss
from lightning_modules.model_folder import new_model
from lightning_modules.module import TransformerModule
from lightning_modules.objectives import CausalLM, MaskedLM, SpanCorruption
from lightning_modules.text_rows import TextRows
from lightning_modules.trainer import build_trainer
from lightning_modules.transformer import cross_entropy
from lightning_modules.transformer.cross_entropy import linear_cross_entropy
from lightning_modules.transformer.stack import Stack

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
LENGTH, STEPS = 256, 8
LLAMA = {"positions": "rotary", "activation": "swiglu", "norm_type": "rms", "bias": False, "key_value_heads": 2}
WIDE = {"heads": 2}  # heads of 16, the narrowest that the kernel for packed documents takes
SHAPES: dict[str, dict[str, Any]] = {
    "narrow": {"architecture": "decoder"},
    "decoder": WIDE | {"architecture": "decoder"},
    "llama": LLAMA | {"architecture": "decoder", "d_model": 64, "qk_norm": True},
    "alibi": WIDE | {"architecture": "decoder", "positions": "alibi"},
    "window": WIDE | {"architecture": "decoder", "positions": "rotary", "window": 40},
    "encoder": WIDE | {"architecture": "encoder"},
    "encoder_decoder": WIDE | {"positions": "relative"},
}


@pytest.fixture(autouse=True)
def _products_are_exact() -> Iterator[None]:
    """Those of fp32 in fp32, as on a CPU; the trainer says otherwise. And no process group is left."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)
    if dist.is_initialized():
        dist.destroy_process_group()


def rows(folder: Path, **changes: Any) -> TextRows:
    """Rows of 256 tokens, some ten sentences in each."""
    made = config(max_length=LENGTH, **changes)
    objectives = {
        "decoder": CausalLM(),
        "encoder": MaskedLM(0.15, 4, 0, 70, VOCAB_SIZE, None),
        "encoder_decoder": SpanCorruption(0.15, 3.0, 5, 64, 2),
    }
    store = write_store(folder, encoded(sentences()))
    return TextRows(store, made, objectives[made.architecture], LENGTH, 4, 2, 1, "best_fit")


def loss_and_gradients(made: Any, given: Batch) -> list[Tensor]:
    """On the CPU, wherever they were computed."""
    nats, count = batch_loss(made, given, 0.1)
    gradients = torch.autograd.grad(nats / count, list(made.parameters()), allow_unused=True)
    return [(nats / count).detach().cpu(), *(gradient.cpu() for gradient in gradients if gradient is not None)]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_packed_documents_are_learnt_as_on_a_cpu(tmp_path: Path, shape: str, compiled: bool) -> None:
    data = rows(tmp_path / "data", **SHAPES[shape])
    given, made = data.training_batch(0, 0, 1), model(1, **SHAPES[shape], max_length=LENGTH)
    assert given.documents is not None
    expected = loss_and_gradients(made, given)
    made.cuda()
    if compiled:
        made.compile()
    for one, other in zip(loss_and_gradients(made, move_data_to_device(given, "cuda")), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("window", [None, 40])
def test_hidden_blocks_are_left_out(window: int | None) -> None:
    window_of = {} if window is None else {"window": window}
    made = model(1, architecture="decoder", max_length=LENGTH, **WIDE, **window_of).cuda()
    ids_BT = batch(1, [1], [LENGTH, LENGTH])[1].cuda()
    document_BL = torch.arange(LENGTH, device="cuda").div(50, rounding_mode="floor").expand(2, -1).contiguous()
    hidden = []
    for way in ("flex", "mask"):
        for part in made.modules():
            if isinstance(part, Stack):
                part.packs_with = way  # type: ignore[assignment]
        hidden.append(made(ids_BT[:, :0], ids_BT, None, document_BL))
    torch.testing.assert_close(*hidden, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("entries", [1001, 1024])
def test_the_cross_entropy_is_that_of_all_scores_at_once(entries: int, smoothing: float, half: bool) -> None:
    torch.manual_seed(1)
    positions = cross_entropy.GPU_PIECE + 17
    shapes = ((positions, 64), (entries, 64), (entries,))
    factors = [torch.randn(shape, device="cuda", requires_grad=True) for shape in shapes]
    target_N = torch.randint(0, entries, (positions,), device="cuda")
    scores = functional.linear(factors[0], factors[1], factors[2])
    expected = functional.cross_entropy(scores, target_N, reduction="sum", label_smoothing=smoothing)
    with torch.autocast("cuda", torch.bfloat16, enabled=half):
        ours = linear_cross_entropy(factors[0], factors[1], factors[2], target_N, smoothing)
    near = 2e-2 if half else 1e-4
    assert ours.item() == pytest.approx(expected.item(), rel=near)
    for one, other in zip(torch.autograd.grad(ours, factors), torch.autograd.grad(expected, factors), strict=True):
        assert float((one - other).norm() / other.norm()) < near


class Losses(pl.Callback):
    """The loss of each step."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.found.append(float(trainer.strategy.reduce(pl_module.train_loss, reduce_op="mean")))


def train(folder: Path, shape: str, steps: int = STEPS, **changes: Any) -> tuple[list[float], Any]:
    """The losses of a training on one GPU, or on what `changes` say, from its newest checkpoint; and the module."""
    changes = {"accelerator": "gpu", "devices": 1, "precision": "32-true", "compile": False} | changes
    used, data = hardware(**changes), rows(folder / "data", **SHAPES[shape])
    made = new_model(data.config, 1)
    choice = choose(used, 32, same_shapes=True)
    if choice.compiled:
        made.compile()
    losses, module = Losses(), TransformerModule(made, recipe(steps=STEPS, ema_decay=0.9, learning_rate=1e-3))
    checkpoints = Checkpoints(folder / "checkpoints", 4, 2, 0, 0)
    guard = StepGuard("test", folder, "skip", 4, 2, None)
    fit = build_trainer(used, choice, steps, 1, 4, 1.0, [guard, losses, checkpoints])
    start = newest_checkpoint(folder / "checkpoints")
    fit.fit(module, TextDataModule(data, data), ckpt_path=start, weights_only=True)
    return losses.found, module


@pytest.mark.parametrize("shape", ["llama", "encoder", "encoder_decoder"])
def test_training_there_is_training_here(tmp_path: Path, shape: str) -> None:
    here, _ = train(tmp_path / "cpu", shape, accelerator="cpu")
    there, _ = train(tmp_path / "gpu", shape)
    assert there == pytest.approx(here, rel=5e-3)  # products in TF32
    half, _ = train(tmp_path / "half", shape, precision="auto", compile="auto")
    assert half == pytest.approx(here, rel=2e-2)
    assert half[-1] < half[0]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "tensor_parallel"])
def test_every_strategy_runs_there(tmp_path: Path, strategy: str) -> None:
    alone, _ = train(tmp_path / "alone", "decoder")
    assert train(tmp_path / strategy, "decoder", strategy=strategy)[0] == pytest.approx(alone, rel=1e-3)
    half, _ = train(tmp_path / "half", "decoder", strategy=strategy, precision="bf16-mixed")
    assert half == pytest.approx(alone, rel=2e-2)


def test_a_resumed_training_goes_on_as_the_uninterrupted_one(tmp_path: Path) -> None:
    whole, module = train(tmp_path / "whole", "llama", precision="bf16-mixed")
    first, _ = train(tmp_path / "parts", "llama", steps=4, precision="bf16-mixed")
    rest, resumed = train(tmp_path / "parts", "llama", precision="bf16-mixed")
    assert len(first) == len(rest) == 4
    assert [*first, *rest] == pytest.approx(whole, rel=1e-3)
    assert isinstance(module.average, MovingAverage)
    one, other = (made.average.state_dict() for made in (module, resumed))
    for name, weights in one.items():
        torch.testing.assert_close(weights.cpu(), other[name].cpu(), rtol=1e-2, atol=1e-3)


def test_a_loss_that_is_no_number_is_noticed_there(tmp_path: Path) -> None:
    data = pairs_split(tmp_path / "data")
    made = new_model(data.config, 1)
    made.embedding.weight_VD.data[:] = math.nan  # type: ignore[operator, union-attr, index]
    used = hardware(accelerator="gpu", devices=1)
    guard = StepGuard("test", tmp_path, "skip", 4, 2, None)
    fit = build_trainer(used, choose(used, 32, same_shapes=False), 4, 1, 4, 1.0, [guard])
    with pytest.raises(TrainingFailed, match="not finite at step 1"):
        fit.fit(TransformerModule(made, recipe(steps=4)), TextDataModule(data, data))
    assert (tmp_path / "bad-batch-step-1.safetensors").exists()


@pytest.mark.parametrize("decoding", [Decoding(20), Decoding(20, beams=4, answers=2), Decoding(20, no_repeat_ngram=2)])
@pytest.mark.parametrize("architecture", ["decoder", "encoder_decoder"])
def test_answers_are_written_there_as_here(architecture: str, decoding: Decoding) -> None:
    made = lively(3, architecture=architecture)
    source_BS, _ = batch(2, [9, 9, 9, 9], [1])
    here = decode(made, source_BS, None, decoding)
    there = decode(made.cuda(), source_BS.cuda(), None, decoding)
    assert [[one.ids for one in texts] for texts in there] == [[one.ids for one in texts] for texts in here]
    for one, other in zip(here, there, strict=True):
        assert [text.score for text in one] == pytest.approx([text.score for text in other], abs=1e-3)
