"""The LightningModule inside a real Trainer: its training is the plain loop's, its validation loss the plain sum's."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from tiny import config, hardware, pairs_split, recipe, rows_split
from torch.nn.utils import clip_grad_norm_

from lightning_modules.datamodule import Batch, Batches, TextDataModule
from lightning_modules.loss import sequence_loss
from lightning_modules.model_folder import new_model
from lightning_modules.module import TransformerModule
from lightning_modules.trainer import build_trainer
from lightning_modules.transformer.model import EncoderDecoder

STEPS, CLIP = 6, 0.5


def split_of(kind: str, folder: Path) -> Batches:
    return rows_split(folder) if kind == "rows" else pairs_split(folder)


class _Losses(pl.Callback):
    def __init__(self) -> None:
        self.training: list[float] = []
        self.validation: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, TransformerModule)
        self.training.append(float(pl_module.train_loss))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.validation.append(float(trainer.callback_metrics["validation_loss"]))


def fitted(split: Batches, seed: int = 0, dropout: float = 0.0, **changes: Any) -> tuple[EncoderDecoder, _Losses]:
    model, losses = new_model(config(dropout=dropout), seed=0), _Losses()
    trainer = build_trainer(hardware(), STEPS, 3, CLIP, [losses])
    trainer.fit(TransformerModule(model, recipe(steps=STEPS, seed=seed, **changes)), TextDataModule(split, split))
    return model, losses


def plain_validation(model: EncoderDecoder, split: Batches) -> float:
    nats = tokens = 0.0
    model.eval()
    with torch.no_grad():
        for batch in split.validation_batches(0, 1):
            loss, count = sequence_loss(model, *batch, label_smoothing=0.0)
            nats, tokens = nats + loss.item(), tokens + count.item()
    model.train()
    return nats / tokens


@pytest.mark.parametrize("kind", ["rows", "pairs"])
def test_training_is_a_plain_loop(kind: str, tmp_path: Path) -> None:
    """Loss per real token, clipped, AdamW, the learning rate warming up over 4 steps and falling as 1/√step."""
    split = split_of(kind, tmp_path)
    trained, losses = fitted(split, warmup_steps=4, label_smoothing=0.1)
    plain = new_model(config(), seed=0)
    decayed = [p for n, p in plain.named_parameters() if p.ndim == 2 and "embedding" not in n]
    others = [p for n, p in plain.named_parameters() if p.ndim == 1 or "embedding" in n]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-9)
    expected, validated, clipped = [], [], 0
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * ((step + 1) / 4 if step < 4 else (4 / (step + 1)) ** 0.5)
        optimizer.zero_grad()
        loss, tokens = sequence_loss(plain, *split.training_batch(step, 0, 1), label_smoothing=0.1)
        (loss / tokens).backward()
        clipped += int(clip_grad_norm_(plain.parameters(), CLIP) > CLIP)
        optimizer.step()
        expected.append((loss / tokens).item())
        if step % 3 == 2:
            validated.append(plain_validation(plain, split))
    assert clipped > 2
    assert losses.training == pytest.approx(expected, rel=1e-4)
    assert losses.validation == pytest.approx(validated, rel=1e-4)
    for name, weight in trained.named_parameters():
        other = plain.get_parameter(name)
        if name.endswith("key_value.bias"):  # the keys' half shifts all scores alike: its gradient is rounding noise
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


def test_dropout_is_drawn_anew_each_step(tmp_path: Path) -> None:
    _, losses = fitted(_OneBatch(rows_split(tmp_path)), dropout=0.2, learning_rate=0.0)
    assert len(set(losses.training)) == STEPS
    assert len(set(losses.validation)) == 1  # nothing is dropped there
    _, losses = fitted(_OneBatch(rows_split(tmp_path / "again")), learning_rate=0.0)
    assert len(set(losses.training)) == 1


def test_dropout_is_drawn_from_the_seed(tmp_path: Path) -> None:
    split = rows_split(tmp_path)
    (one, _), (same, _), (other, _) = (fitted(split, seed=seed, dropout=0.2) for seed in (1, 1, 2))
    states = [model.state_dict() for model in (one, same, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_the_loss_falls(tmp_path: Path) -> None:
    _, losses = fitted(rows_split(tmp_path))
    assert losses.validation[-1] < losses.validation[0] < losses.training[0]
