"""Processes of one training: as many as asked for, from one checkpoint, and none that waits for ever."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from forked import Forked
from processes import end_group
from stage_runs import environment_of
from tiny import model as tiny_model
from tiny import pairs_split, recipe, trainer

from lightning_modules.callbacks import Checkpoints
from lightning_modules.datamodule import TextDataModule
from lightning_modules.errors import PipelineError
from lightning_modules.launch import PEER_TIMEOUT
from lightning_modules.module import TransformerModule


@pytest.mark.parametrize(("told", "seconds"), [(None, PEER_TIMEOUT), ("7", 7)])
@pytest.mark.parametrize("strategy", ["auto", "ddp", "fsdp"])
def test_no_process_waits_longer_than_told(
    monkeypatch: pytest.MonkeyPatch, strategy: str, told: str | None, seconds: int
) -> None:
    monkeypatch.delenv("PIPELINE_PEER_TIMEOUT", raising=False)
    if told:
        monkeypatch.setenv("PIPELINE_PEER_TIMEOUT", told)
    made: Any = trainer(1, 1, 1.0, [], devices=2, strategy=strategy).strategy
    assert made._timeout == timedelta(seconds=seconds)


@pytest.mark.parametrize("told", ["0", "-3", "1.5", "ten", "²"])
def test_what_is_no_time_to_wait_is_one_line(monkeypatch: pytest.MonkeyPatch, told: str) -> None:
    monkeypatch.setenv("PIPELINE_PEER_TIMEOUT", told)
    with pytest.raises(PipelineError, match=r"PIPELINE_PEER_TIMEOUT is .* it takes whole seconds, above 0"):
        trainer(1, 1, 1.0, [])


class Ahead(pl.Callback):
    """The second process believes that it went on from step 5; each says why it ends."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_rank == 1:
            loop = trainer.fit_loop.epoch_loop.automatic_optimization
            loop.optim_progress.optimizer.step.total.completed = 5
            assert trainer.global_step == 5

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        print(exception, flush=True)


def train_two(folder: Path) -> None:
    """Two processes, forked from the one that calls this."""
    made = trainer(20, 100, 1.0, [Ahead(), Checkpoints(folder, 100, 1, 0, 0)], devices=2, strategy="ddp_fork")
    split = pairs_split(folder / "data")
    made.fit(TransformerModule(tiny_model(), recipe(steps=20)), TextDataModule(split, split))


def said(folder: Path, call: Callable[[Path], None], status: int, **environment: str) -> str:
    """What a process prints that calls it and ends with that status; its own children end with it."""
    process = Forked(folder, environment_of(environment), folder / "log.txt", call, folder)
    try:
        assert process.wait(timeout=240) == status, (folder / "log.txt").read_text()
    finally:
        end_group(process.pid)
    return (folder / "log.txt").read_text()


def test_processes_that_found_different_checkpoints_do_not_train(tmp_path: Path) -> None:
    # The one that ends first may cut the other off, which says that instead.
    different = "the processes found different checkpoints: this one goes on from step"
    assert different in said(tmp_path, train_two, status=1)
