"""What happens around training steps: checkpoints to resume from, the best weights, stopping on request."""

import os
import shutil
import signal
import zipfile
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from safetensors.torch import save_file

from lightning_modules.batching import Batch
from lightning_modules.errors import PipelineError
from lightning_modules.launch import require_same_step
from lightning_modules.module import TransformerModule
from lightning_modules.parallel import whole_state


class Checkpoints(pl.Callback):
    """Every so many steps everything needed to go on; after each validation, if it is the best, the weights alone.

    Files appear under their names only when they are whole: written beside and renamed.
    """

    def __init__(self, folder: Path, every: int, keep: int, average: int, patience: int) -> None:
        """`keep` checkpoints are kept, and the weights of the last `average` ones for a mean of them.

        `patience` validations without improvement end the training; 0: never.
        """
        self.folder, self.every, self.keep, self.average, self.patience = folder, every, keep, average, patience
        self.least_fault = self.best_loss = float(
            "inf"
        )  # of the best weights: what they were judged by, and their loss
        self.best_step, self.best_weights, self.without_improvement = 0, "raw", 0

    def state_dict(self) -> dict[str, Any]:
        """Plain values, saved in every checkpoint."""
        return {
            "least_fault": self.least_fault,
            "best_loss": self.best_loss,
            "best_step": self.best_step,
            "best_weights": self.best_weights,
            "without_improvement": self.without_improvement,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes them up again."""
        self.least_fault, self.best_loss = state_dict["least_fault"], state_dict["best_loss"]
        self.best_step = state_dict["best_step"]
        self.best_weights, self.without_improvement = state_dict["best_weights"], state_dict["without_improvement"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Raises PipelineError where the processes went on from different checkpoints."""
        require_same_step(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Saves when it is time; where a validation follows, after it."""
        if step_done(trainer, batch_idx) and self._due(trainer) and not validation_follows(trainer):
            self._save(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keeps the weights of the best validation so far; ends a training that no longer improves; saves if due."""
        assert isinstance(pl_module, TransformerModule)
        weights, fault = min(pl_module.faults.items(), key=lambda item: item[1])
        if fault < self.least_fault:
            self.least_fault, self.best_loss = fault, pl_module.validation_losses[weights]
            self.best_step, self.best_weights = trainer.global_step, weights
            self.without_improvement = 0
            with pl_module.average.in_place() if weights == "ema" and pl_module.average else nullcontext():
                # A run killed before its next checkpoint validates this step again, with the same result.
                save_weights(trainer, pl_module, self.folder / "best.safetensors")
        else:
            self.without_improvement += 1
            if self.patience and self.without_improvement >= self.patience:
                trainer.should_stop = True
        if self._due(trainer) and not trainer.should_stop and trainer.state.fn == TrainerFn.FITTING:
            self._save(trainer, pl_module)

    def _due(self, trainer: pl.Trainer) -> bool:
        return trainer.global_step % self.every == 0

    def _save(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.average:
            assert isinstance(pl_module, TransformerModule)
            save_weights(trainer, pl_module, self.folder / f"weights-{trainer.global_step:09d}.safetensors")
            if trainer.is_global_zero:
                for old in sorted(self.folder.glob("weights-*.safetensors"))[: -self.average]:
                    old.unlink()
        save_checkpoint(trainer, self.folder, self.keep)


def step_done(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether this batch was the last of those that a step's gradient is accumulated over."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0


def validation_follows(trainer: pl.Trainer) -> bool:
    """Whether the step just made is followed by a validation.

    A checkpoint saved between the two would lose it: Lightning takes up such a checkpoint after the validation.
    """
    every = trainer.val_check_batch
    return every is not None and trainer.global_step * trainer.accumulate_grad_batches % every == 0


def save_weights(trainer: pl.Trainer, module: TransformerModule, path: Path) -> None:
    """Writes the weights alone, whole or not at all. All ranks must call it."""
    whole = whole_state(module.model)
    if trainer.is_global_zero:
        _write(path, lambda to: save_file({name: tensor.contiguous() for name, tensor in whole.items()}, to))


def save_checkpoint(trainer: pl.Trainer, folder: Path, keep: int) -> None:
    """Writes `step-N.ckpt` into `folder` and removes all but the newest `keep`. All ranks must call it.

    Raises PipelineError where it cannot be written; those before it are left as they are.
    """
    path = folder / f"step-{trainer.global_step:09d}.ckpt"
    _write(path, trainer.save_checkpoint, written=trainer.is_global_zero)
    if trainer.is_global_zero:
        for old in sorted(folder.glob("step-*.ckpt"))[:-keep]:
            old.unlink()


def _write(path: Path, write: Callable[[Path], None], written: bool = True) -> None:
    """Lets `write` make a file beside `path`; moves it there once it is on the disk and can be read again.

    Ranks that only take part in making it (`written` is false) have no file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        write(unfinished)
        if not written:
            return
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        if path.suffix == ".ckpt":
            check_readable(unfinished)
        unfinished.replace(path)
    except (OSError, RuntimeError, zipfile.BadZipFile) as error:  # the second: torch's own
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        free = shutil.disk_usage(path.parent).free
        raise PipelineError(
            f"{path} cannot be written ({error}; {free / 1e9:.1f} GB free there): what was saved before is kept, and "
            "the same command goes on from it once there is room"
        ) from error


def check_readable(path: Path) -> None:
    """Raises where a checkpoint is cut or a byte of it is not what was written (ZIP's checksums; 1 s a gigabyte)."""
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(f"{damaged} in it has changed since it was written")
    torch.load(path, map_location="meta", weights_only=True, mmap=True)


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that can be read. One that cannot is named on stdout and set aside as `*.damaged`."""
    for path in sorted(folder.glob("step-*.ckpt"), reverse=True):
        try:
            check_readable(path)
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

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep, self.stopped = folder, keep, False
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

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Puts them back then, too: Lightning does not call `teardown`."""
        self.teardown(trainer, pl_module, "fit")

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._signal = number

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Stops here, or where a validation follows, after it."""
        if step_done(trainer, batch_idx) and not validation_follows(trainer):
            self._stop_if_told(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stops here, unless the training has just ended by itself."""
        if not trainer.should_stop and trainer.state.fn == TrainerFn.FITTING:
            self._stop_if_told(trainer, pl_module)

    def _stop_if_told(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Asks all ranks whether any was told to stop."""
        told = torch.tensor(float(self._signal != 0), device=pl_module.device)
        if trainer.world_size > 1:
            told = trainer.strategy.reduce(told, reduce_op="sum")  # type: ignore[assignment]
        if told > 0:
            save_checkpoint(trainer, self.folder, self.keep)
            trainer.strategy.barrier()  # the file is in its place before any process ends, and takes others with it
            self.stopped = True
            trainer.should_stop = True
            trainer.limit_val_batches = 0  # Lightning would validate before it stops
