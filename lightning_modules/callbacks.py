"""What happens around training steps: checkpoints to resume from, the best weights, stopping on request, telling."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from safetensors.torch import save_file
from tqdm import tqdm

from lightning_modules.batching import Batch
from lightning_modules.module import TransformerModule

KEEP_CHECKPOINTS = 2  # the last, and the one before it in case the last cannot be read


class Checkpoints(pl.Callback):
    """Every so many steps everything needed to go on; after each validation, if it is the best, the weights alone.

    Files appear under their names only when they are whole: written beside and renamed.
    """

    def __init__(self, folder: Path, every: int, patience: int) -> None:
        """`patience` validations without improvement end the training; 0: never."""
        self.folder, self.every, self.patience = folder, every, patience
        self.best_loss, self.best_step, self.without_improvement = float("inf"), 0, 0

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, saved in every checkpoint."""
        return {
            "best_loss": self.best_loss,
            "best_step": self.best_step,
            "without_improvement": self.without_improvement,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes them up again."""
        self.best_loss, self.best_step = state_dict["best_loss"], state_dict["best_step"]
        self.without_improvement = state_dict["without_improvement"]

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Saves when it is time; where a validation follows, after it."""
        if trainer.global_step % self.every == 0 and not validation_follows(trainer):
            save_checkpoint(trainer, self.folder)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keeps the weights of the best validation so far; ends a training that no longer improves; saves if due."""
        loss = float(trainer.callback_metrics["validation_loss"])
        if loss < self.best_loss:
            self.best_loss, self.best_step, self.without_improvement = loss, trainer.global_step, 0
            if trainer.is_global_zero:
                assert isinstance(pl_module, TransformerModule)
                self.folder.mkdir(parents=True, exist_ok=True)
                unfinished = self.folder / "best.unfinished"
                save_file({k: v.contiguous() for k, v in pl_module.model.state_dict().items()}, unfinished)
                # A run killed before its next checkpoint validates this step again, with the same result.
                unfinished.replace(self.folder / "best.safetensors")
        else:
            self.without_improvement += 1
            if self.patience and self.without_improvement >= self.patience:
                trainer.should_stop = True
        if trainer.global_step % self.every == 0 and not trainer.should_stop:
            save_checkpoint(trainer, self.folder)


def validation_follows(trainer: pl.Trainer) -> bool:
    """Whether the step just made is followed by a validation.

    A checkpoint saved between the two would lose it: Lightning takes up such a checkpoint after the validation.
    """
    every = trainer.val_check_batch
    return every is not None and trainer.global_step % every == 0


def save_checkpoint(trainer: pl.Trainer, folder: Path) -> None:
    """Writes `step-N.ckpt` into `folder` and removes all but the newest two. All ranks must call it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{trainer.global_step:09d}.ckpt"
    unfinished = path.with_suffix(".unfinished")
    trainer.save_checkpoint(unfinished)
    if trainer.is_global_zero:
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        unfinished.replace(path)
        for old in sorted(folder.glob("step-*.ckpt"))[:-KEEP_CHECKPOINTS]:
            old.unlink()


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that can be read. One that cannot is named on stdout and set aside as `*.damaged`."""
    for path in sorted(folder.glob("step-*.ckpt"), reverse=True):
        try:
            torch.load(path, map_location="meta", weights_only=True, mmap=True)
        except Exception as error:  # a cut or overwritten file fails in many ways
            print(f"checkpoint {path} cannot be read ({error}): set aside, using the one before", flush=True)
            path.rename(path.with_suffix(".damaged"))
        else:
            return path
    return None


class StopOnSignal(pl.Callback):
    """SIGTERM or SIGINT: finish the step, save a checkpoint, end. On several ranks all stop at the same step.

    Lightning's own SIGTERM handling exits with status 0 and hangs under DDP, so this one replaces it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.stopped = folder, False
        self._signal = 0
        self._former: dict[int, Any] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Installs the handlers, and keeps Lightning from installing its own a moment later."""
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        for number in (signal.SIGTERM, signal.SIGINT):
            self._former[number] = signal.signal(number, self._remember)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Puts the former handlers back."""
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._signal = number

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Stops here, or where a validation follows, after it."""
        if not validation_follows(trainer):
            self._stop_if_told(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stops here, unless the training has just ended by itself."""
        if not trainer.should_stop:
            self._stop_if_told(trainer, pl_module)

    def _stop_if_told(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Asks all ranks whether any was told to stop."""
        told = torch.tensor(float(self._signal != 0), device=pl_module.device)
        if trainer.world_size > 1:
            told = trainer.strategy.reduce(told, reduce_op="sum")  # type: ignore[assignment]
        if told > 0:
            save_checkpoint(trainer, self.folder)
            self.stopped = True
            trainer.should_stop = True
            trainer.limit_val_batches = 0  # Lightning would validate before it stops


class Telling(pl.Callback):
    """A progress bar, and the learning curve: a row each `every` steps and each validation.

    Rows are kept in checkpoints, so the curve of a resumed run is whole.
    """

    def __init__(
        self,
        name: str,
        steps: int,
        every: int,
        bar: Callable[..., "tqdm[Any]"],
        log: Callable[[dict[str, float], int], None] | None,
    ) -> None:
        """`bar(total=…, name=…, unit=…)` makes the progress bar; `log` receives (metrics, step) as they come."""
        self.name, self.steps, self.every, self.make_bar, self.record = name, steps, every, bar, log
        self.rows: list[dict[str, float]] = []
        self.tokens, self.seconds = 0, 0.0  # over all processes that worked on this run, validation included
        self._clock = 0.0
        self._mark = (0.0, 0)  # seconds and tokens at the last row
        self._bar: tqdm[Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The curve so far and what it cost."""
        return {"rows": self.rows, "tokens": self.tokens, "seconds": self.seconds, "mark": self._mark}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes them up again."""
        self.rows, self.tokens = list(state_dict["rows"]), state_dict["tokens"]
        self.seconds, self._mark = state_dict["seconds"], state_dict["mark"]

    def validated(self, step: int) -> bool:
        """Whether the weights after `step` have been validated."""
        return any(row["step"] == step and "validation_loss" in row for row in self.rows)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Opens the bar at the step that training starts from."""
        self._clock = time.perf_counter()
        if trainer.is_global_zero:
            self._bar = self.make_bar(total=self.steps, name=self.name, unit="step")
            self._bar.update(trainer.global_step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Counts, and moves the bar; each `every` steps adds a row."""
        now = time.perf_counter()
        self.seconds, self._clock = self.seconds + now - self._clock, now
        assert isinstance(pl_module, TransformerModule)
        written = 0 if pl_module.model.config.architecture == "encoder" else batch.target_BT.numel()
        self.tokens += (batch.source_BS.numel() + written) * trainer.world_size
        if self._bar is not None:
            self._bar.update()
        if trainer.global_step % self.every:
            return
        seconds, tokens = self.seconds - self._mark[0], self.tokens - self._mark[1]
        self._mark = (self.seconds, self.tokens)
        loss = pl_module.train_loss
        if trainer.world_size > 1:  # each rank holds its part of the sum times the number of ranks
            loss = trainer.strategy.reduce(loss, reduce_op="mean")  # type: ignore[assignment]
        row = {
            "train_loss": float(loss),
            "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
            "tokens_per_second": tokens / seconds,
        }
        self._add(row, trainer)
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss={row['train_loss']:.3f} {row['tokens_per_second']:,.0f} tokens/s")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Adds the validation loss."""
        self._add({"validation_loss": float(trainer.callback_metrics["validation_loss"])}, trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Closes the bar."""
        if self._bar is not None:
            self._bar.close()

    def _add(self, metrics: dict[str, float], trainer: pl.Trainer) -> None:
        self.rows.append({"step": trainer.global_step, **metrics})
        if self.record:
            self.record(metrics, trainer.global_step)
