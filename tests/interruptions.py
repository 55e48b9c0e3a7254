"""A training in this process that can be cut short at any of its moments, as the stages drive it."""

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import tiny
import torch
from safetensors.torch import load_file
from tiny import config, recipe
from tqdm import tqdm

from lightning_modules import telling
from lightning_modules.callbacks import Checkpoints, PastEpochs, StopOnSignal
from lightning_modules.checkpoint_files import newest_checkpoint
from lightning_modules.datamodule import Batches, TextDataModule
from lightning_modules.errors import Interrupted
from lightning_modules.model_folder import Model, new_model
from lightning_modules.module import TransformerModule
from lightning_modules.peak import matmul_peak
from lightning_modules.text_pairs import SpanPairs, TextPairs
from lightning_modules.transformer.heads import SpanReader
from lightning_modules.transformer.model import Encoder
from stages.fitting import try_mean

telling.matmul_peak = cache(matmul_peak)  # a fifth of the time of trainings as short as these


class Killed(Exception):
    pass


class Moments(pl.Callback):
    """Counts the moments of a training; at the one asked for, something happens."""

    def __init__(self, at: int | None = None, act: Callable[[], None] | None = None) -> None:
        self.at, self.act, self.passed = at, act, 0

    def _moment(self, *_: Any) -> None:
        self.passed += 1
        if self.passed == self.at and self.act:
            self.act()

    on_train_batch_start = on_train_batch_end = _moment
    on_validation_start = on_validation_batch_end = on_validation_epoch_end = on_validation_end = _moment
    on_train_start = on_train_end = _moment


@dataclass
class Plan:
    """What to train, and when to save and validate."""

    split: Batches
    steps: int = 7
    save_every: int = 2
    validate_every: int = 3
    patience: int = 0
    learning_rate: float = 5e-3
    accumulate: int = 1
    ema_decay: float = 0.0
    average: int = 0
    score: Callable[[Model], float] | None = None
    changes: dict[str, Any] = field(default_factory=dict)  # of the model's configuration


@dataclass
class Result:
    weights: dict[str, torch.Tensor]
    best: dict[str, torch.Tensor]
    best_loss: float
    best_step: int
    best_weights: str
    curve: list[dict[str, float]]
    tokens: int
    seconds: float
    speeds: list[float]
    steps: int
    stopped: bool
    moments: int


def _no_bar(**_: Any) -> "tqdm[Any]":
    return tqdm(disable=True)


def train(
    plan: Plan,
    folder: Path,
    *before: pl.Callback,
    after: tuple[pl.Callback, ...] = (),
    bar: Callable[..., "tqdm[Any]"] = _no_bar,
) -> Result:
    """As stages/training.py does it: from the newest checkpoint, to the end or the first moment that stops it."""
    shape = {"d_model": 16, "d_ff": 16, "encoder_layers": 1, "decoder_layers": 1, "dropout": 0.1}
    model: Model = new_model(config(**shape, **plan.changes), seed=0)
    if isinstance(plan.split, SpanPairs):
        assert isinstance(model, Encoder)
        model = SpanReader(model)
    checkpoints, stop = Checkpoints(folder, plan.save_every, 2, plan.average, plan.patience), StopOnSignal(folder, 2)
    told = telling.Telling("test", plan.steps, 1, bar, None)
    epochs = [PastEpochs(plan.split)] if isinstance(plan.split, TextPairs) else []
    callbacks = [*before, told, checkpoints, stop, *epochs, *after]
    trainer = tiny.trainer(plan.steps, plan.validate_every, 1.0, callbacks, plan.accumulate)
    settings = {"steps": plan.steps, "learning_rate": plan.learning_rate, "ema_decay": plan.ema_decay}
    module = TransformerModule(model, recipe(**settings), plan.score)
    data = TextDataModule(plan.split, plan.split)
    with suppress(Interrupted), stop.listening():
        trainer.fit(module, data, ckpt_path=newest_checkpoint(folder), weights_only=True)
        if not stop.stopped and not told.validated(trainer.global_step):
            trainer.validate(module, data, verbose=False)
        if not stop.stopped and plan.average:
            try_mean(trainer, module, data, folder)
    best = folder / "best.safetensors"
    timed = ("tokens_per_second", "share_of_peak")
    rows = [{key: value for key, value in row.items() if key not in timed} for row in told.rows]
    counted = next((c.passed for c in (*before, *after) if isinstance(c, Moments)), 0)
    return Result(
        weights={name: tensor.clone() for name, tensor in model.state_dict().items()},
        best=load_file(best) if best.exists() else {},
        best_loss=checkpoints.best_loss,
        best_step=checkpoints.best_step,
        best_weights=checkpoints.best_weights,
        curve=rows,
        tokens=told.counts["tokens"],
        seconds=told.seconds,
        speeds=[row["tokens_per_second"] for row in told.rows if "tokens_per_second" in row],
        steps=trainer.global_step,
        stopped=stop.stopped,
        moments=counted,
    )


def assert_same(got: Result, expected: Result) -> None:
    assert got.curve == expected.curve
    assert (got.best_loss, got.best_step, got.best_weights) == (
        expected.best_loss,
        expected.best_step,
        expected.best_weights,
    )
    assert (got.tokens, got.steps, got.stopped) == (expected.tokens, expected.steps, False)
    for one, other in ((got.weights, expected.weights), (got.best, expected.best)):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def raise_killed() -> None:
    raise Killed


def send_sigterm() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
