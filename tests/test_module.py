"""The LightningModule inside a real Trainer: its training is the plain loop's, its validation loss the plain sum's."""

import copy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import tiny
import torch
from tiny import config, pairs_split, recipe, rows_split
from torch.nn.utils import clip_grad_norm_

from lightning_modules.batching import Batch
from lightning_modules.callbacks import step_done
from lightning_modules.datamodule import Batches, TextDataModule
from lightning_modules.loss import batch_loss
from lightning_modules.model_folder import Model, new_model
from lightning_modules.module import TransformerModule
from lightning_modules.transformer.config import OBJECTIVES
from lightning_modules.transformer.heads import SpanReader

STEPS, CLIP = 6, 0.1
SHAPES: dict[str, dict[str, Any]] = {
    "encoder": {"architecture": "encoder", "positions": "learned", "output_transform": True, "output_bias": True},
    "decoder": {"architecture": "decoder", "positions": "rotary"},
    "encoder_decoder": {},
}
ROWS = [(architecture, objective) for objective, fitting in OBJECTIVES.items() for architecture in sorted(fitting)]
KINDS = [("rows", *row) for row in ROWS] + [("pairs", architecture, "") for architecture in SHAPES]


def split_of(kind: str, folder: Path, architecture: str, objective: str) -> Batches:
    changes = SHAPES[architecture]
    return rows_split(folder, objective=objective, **changes) if kind == "rows" else pairs_split(folder, **changes)


def fresh(kind: str, architecture: str, dropout: float = 0.0) -> Model:
    made = new_model(config(**SHAPES[architecture] | {"dropout": dropout}), seed=0)
    return SpanReader(made) if kind == "pairs" and architecture == "encoder" else made  # type: ignore[arg-type]


class _Losses(pl.Callback):
    def __init__(self) -> None:
        self.training: list[float] = []
        self.norms: list[float] = []
        self.validation: list[float] = []
        self.averaged: list[float] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, TransformerModule)
        if step_done(trainer, batch_idx):
            self.training.append(float(pl_module.train_loss))
            self.norms.append(float(pl_module.gradient_norm))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, TransformerModule)
        self.validation.append(pl_module.validation_losses["raw"])
        if pl_module.average is not None:
            self.averaged.append(pl_module.validation_losses["ema"])


def fitted(
    split: Batches, made: Model, steps: int = STEPS, seed: int = 0, accumulate: int = 1, **changes: Any
) -> tuple[Model, _Losses]:
    losses = _Losses()
    trainer = tiny.trainer(steps, 3, CLIP, [losses], accumulate)
    trainer.fit(TransformerModule(made, recipe(steps=steps, seed=seed, **changes)), TextDataModule(split, split))
    return made, losses


def plain_validation(model: Model, split: Batches) -> float:
    nats = tokens = 0.0
    model.eval()
    with torch.no_grad():
        for batch in split.validation_batches(0, 1):
            loss, count = batch_loss(model, batch, label_smoothing=0.0)
            nats, tokens = nats + loss.item(), tokens + count.item()
    model.train()
    return nats / tokens


def decays(name: str, parameter: torch.Tensor) -> bool:
    return parameter.ndim == 2 and "embedding" not in name and "positions" not in name


@pytest.mark.parametrize("accumulate", [1, 3], ids=["whole", "accumulated"])
@pytest.mark.parametrize(
    ("kind", "architecture", "objective"),
    [
        ("rows", "encoder_decoder", "span_corruption"),
        ("rows", "decoder", "causal_lm"),
        ("rows", "encoder", "masked_lm"),
        *[("pairs", architecture, "") for architecture in SHAPES],
    ],
)
def test_training_is_a_plain_loop(
    kind: str, architecture: str, objective: str, accumulate: int, tmp_path: Path
) -> None:
    """Loss per prediction, clipped, AdamW, the learning rate warming up over 4 steps and falling as 1/√step.

    In parts with more and fewer predictions it is the same; so is a moving average of the weights.
    """
    split = split_of(kind, tmp_path, architecture, objective)
    settings = {"warmup_steps": 4, "label_smoothing": 0.1, "ema_decay": 0.3}
    trained, losses = fitted(split, fresh(kind, architecture), accumulate=accumulate, **settings)
    plain = fresh(kind, architecture)
    decayed = [p for n, p in plain.named_parameters() if decays(n, p)]
    others = [p for n, p in plain.named_parameters() if not decays(n, p)]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-9)
    average = copy.deepcopy(plain)
    expected, norms, validated, averaged = [], [], [], []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * ((step + 1) / 4 if step < 4 else (4 / (step + 1)) ** 0.5)
        optimizer.zero_grad()
        loss, tokens = batch_loss(plain, split.training_batch(step, 0, 1), label_smoothing=0.1)
        (loss / tokens).backward()
        norms.append(float(clip_grad_norm_(plain.parameters(), CLIP)))
        optimizer.step()
        decay = min(0.3, (2 + step) / (11 + step))
        for mean, parameter in zip(average.parameters(), plain.parameters(), strict=True):
            mean.data = decay * mean.data + (1 - decay) * parameter.data
        expected.append((loss / tokens).item())
        if step % 3 == 2:
            validated.append(plain_validation(plain, split))
            averaged.append(plain_validation(average, split))
    assert sum(norm > CLIP for norm in norms) > 2
    assert losses.norms == pytest.approx(norms, rel=1e-3)
    assert losses.averaged == pytest.approx(averaged, rel=1e-4)
    assert losses.averaged != pytest.approx(validated, rel=1e-4)
    assert losses.training == pytest.approx(expected, rel=1e-4)
    assert losses.validation == pytest.approx(validated, rel=1e-4)
    for name, weight in trained.named_parameters():
        other = plain.get_parameter(name)
        # What shifts all scores alike has rounding noise for a gradient: here, and the half of the keys below.
        if isinstance(trained, SpanReader) and name in ("ends.bias", "encoder.encoder.norm.bias"):
            continue
        if name.endswith("key_value.bias"):
            weight, other = weight[len(weight) // 2 :], other[len(other) // 2 :]
        torch.testing.assert_close(weight, other, atol=2e-4, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}")


class _OneBatch:
    """The same batch again and again."""

    def __init__(self, split: Batches) -> None:
        self.split = split

    def training_batch(self, number: int, rank: int, ranks: int) -> Batch:
        return self.split.training_batch(0, rank, ranks)

    def validation_batches(self, rank: int, ranks: int) -> Iterator[Batch]:
        return self.split.validation_batches(rank, ranks)


@pytest.mark.parametrize("architecture", SHAPES)
def test_dropout_is_drawn_anew_each_step(architecture: str, tmp_path: Path) -> None:
    split = _OneBatch(pairs_split(tmp_path, **SHAPES[architecture]))
    _, losses = fitted(split, fresh("pairs", architecture, dropout=0.2), learning_rate=0.0)
    assert len(set(losses.training)) == STEPS
    assert len(set(losses.validation)) == 1  # nothing is dropped there
    _, losses = fitted(split, fresh("pairs", architecture), learning_rate=0.0)
    assert len(set(losses.training)) == 1


def test_dropout_is_drawn_from_the_seed(tmp_path: Path) -> None:
    split = rows_split(tmp_path)
    models = [fitted(split, fresh("rows", "encoder_decoder", dropout=0.2), seed=seed)[0] for seed in (1, 1, 2)]
    states = [model.state_dict() for model in models]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])


@pytest.mark.parametrize(("kind", "architecture", "objective"), KINDS)
def test_the_loss_falls(kind: str, architecture: str, objective: str, tmp_path: Path) -> None:
    """Every architecture learns every objective that fits it, and pairs."""
    split = split_of(kind, tmp_path, architecture, objective)
    _, losses = fitted(split, fresh(kind, architecture), steps=16)
    assert losses.validation[-1] < losses.validation[0] - 0.1
    assert losses.validation[-1] < losses.training[0] - 0.2


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile writes C++ on a CPU")
def test_compiled_it_learns_the_same_and_its_weights_have_the_same_names(tmp_path: Path) -> None:
    shape = SHAPES["decoder"] | {"decoder_layers": 1}
    split = rows_split(tmp_path, objective="causal_lm", **shape)
    plain, compiled = (new_model(config(**shape, dropout=0.0), seed=0) for _ in range(2))
    _, expected = fitted(split, plain, steps=3)
    compiled.compile()
    torch._dynamo.utils.counters.clear()  # of what a test before has compiled
    trained, losses = fitted(split, compiled, steps=3)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert losses.training == pytest.approx(expected.training, rel=1e-4)
    assert trained.state_dict().keys() == plain.state_dict().keys()
