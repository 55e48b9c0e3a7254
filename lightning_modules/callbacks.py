"""What happens around training steps: checkpoints to resume from, the best weights, stopping on request."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from math import inf, isfinite
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors.torch import save_file

from lightning_modules.batching import Batch
from lightning_modules.disk import write_whole
from lightning_modules.errors import Interrupted
from lightning_modules.launch import require_same_step
from lightning_modules.lightning import pl
from lightning_modules.module import TransformerModule
from lightning_modules.parallel import whole_state


class Checkpoints(pl.Callback):
    """Every so many steps everything needed to go on; after each validation, if it is the best, the weights alone."""

    def __init__(self, folder: Path, every: int, keep: int, average: int, patience: int) -> None:
        """`keep` checkpoints are kept, and the weights of the last `average` ones for a mean of them.

        `patience` validations without improvement end the training; 0: never.
        """
        self.folder, self.every, self.keep, self.average, self.patience = folder, every, keep, average, patience
        self.least_fault = self.best_loss = inf  # of the best weights: what they were judged by, and their loss
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
            save_checkpoint(trainer, self.folder, self.keep)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keeps the weights of the best validation so far; ends a training that no longer improves; saves if due."""
        assert isinstance(pl_module, TransformerModule)
        # An average may be finite where the weights are not, or the other way round.
        weights, fault = min(pl_module.faults.items(), key=lambda item: item[1] if isfinite(item[1]) else inf)
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
        if self._due(trainer) and not trainer.should_stop and trainer.state.fn == pl.trainer.states.TrainerFn.FITTING:
            save_checkpoint(trainer, self.folder, self.keep)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Writes the weights that a mean is made of before the checkpoint from which it would lack them."""
        if self.average and trainer.global_step and self._due(trainer):
            assert isinstance(pl_module, TransformerModule)
            save_weights(trainer, pl_module, self.folder / f"weights-{trainer.global_step:09d}.safetensors")
            if trainer.is_global_zero:
                for old in sorted(self.folder.glob("weights-*.safetensors"))[: -self.average]:
                    old.unlink()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves the last step, where more is to be done than to write the model, and it is not saved yet."""
        last = trainer.global_step >= trainer.max_steps
        if last and not self._due(trainer) and (self.average or not validation_follows(trainer)):
            save_checkpoint(trainer, self.folder, self.keep)

    def _due(self, trainer: pl.Trainer) -> bool:
        return trainer.global_step % self.every == 0


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
    """Writes the weights alone, whole or not at all. All ranks must call it. Raises PipelineError where it cannot."""
    whole = whole_state(module.model)
    if trainer.is_global_zero:
        write_whole(path, lambda to: save_file({name: tensor.contiguous() for name, tensor in whole.items()}, to))


def save_checkpoint(trainer: pl.Trainer, folder: Path, keep: int) -> None:
    """Writes `step-N.ckpt` into `folder`; removes all but the newest `keep`, damaged ones too. All ranks must call it.

    Raises PipelineError where it cannot be written; those before it are left as they are.
    """
    trainer.save_checkpoint(folder / f"step-{trainer.global_step:09d}.ckpt")  # by CheckpointFiles
    if trainer.is_global_zero:
        for kind in ("ckpt", "damaged"):
            for old in sorted(folder.glob(f"step-*.{kind}"))[:-keep]:
                old.unlink()


@runtime_checkable
class UnevenEpochs(Protocol):
    """Batches whose epochs differ in length, as those of pairs do."""

    first_batches: list[int]  # of each epoch so far, and of the next


class PastEpochs(pl.Callback):
    """Keeps in checkpoints where the epochs of pairs so far began, so that going on costs no more than starting.

    Nothing depends on it but the time to find the place: without it some seconds a million pairs and epoch.
    """

    def __init__(self, batches: UnevenEpochs) -> None:
        self.batches = batches

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {"first_batches": list(self.batches.first_batches)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes them up again."""
        self.batches.first_batches = state_dict["first_batches"]


class StopOnSignal(pl.Callback):
    """SIGTERM or SIGINT: finish the step, save a checkpoint, end. On several ranks all stop at the same step.

    In a validation no more than the batch, or the scores, at hand are finished: going on, it is made anew. Lightning's
    own SIGTERM handling exits with status 0 and hangs under DDP, so this one replaces it.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep, self.stopped = folder, keep, False
        self._signal = 0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Signals are heard while the block lasts: also between two tries of a training, and while it is set up."""
        former = {number: signal.signal(number, self._remember) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Keeps Lightning from installing handlers of its own a moment later."""
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._signal = number

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Told while it was set up, it need not make a step, which may take long the first time."""
        if self._told(trainer, pl_module):
            self.stopped = True
            raise Interrupted(f"at step {trainer.global_step}, before the next was begun; the same command begins it")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Stops here, or where a validation follows, in it."""
        if step_done(trainer, batch_idx) and not validation_follows(trainer):
            self._stop_if_told(trainer, pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Has Lightning forget that a validation before this one was broken off, or it would make this one twice."""
        trainer.fit_loop.epoch_loop.val_loop.batch_progress.total.reset()

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Breaks the validation off."""
        self._break_off_if_told(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Also before texts are written to be scored."""
        self._break_off_if_told(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stops here, unless the training has just ended by itself."""
        if not trainer.should_stop and trainer.state.fn == pl.trainer.states.TrainerFn.FITTING:
            self._stop_if_told(trainer, pl_module)

    def _stop_if_told(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._told(trainer, pl_module):
            self._save(trainer)
            trainer.should_stop = True
            trainer.limit_val_batches = 0  # Lightning would validate before it stops

    def _break_off_if_told(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Raises Interrupted. After the last step there is a checkpoint already (`Checkpoints.on_train_end`)."""
        if not self._told(trainer, pl_module):
            return
        if trainer.state.fn == pl.trainer.states.TrainerFn.FITTING:
            # Saved as within the work on a batch, whatever the batch: Lightning takes that up before it trains on.
            progress: Any = trainer.fit_loop.epoch_loop.val_loop.batch_progress
            progress.current.reset()
            progress.total.processed = progress.total.completed = progress.total.ready - 1
            self._save(trainer)
            raise Interrupted(stopped_at(trainer))
        self.stopped = True
        raise Interrupted("the training was over but for a validation; the same command makes it")

    def _told(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> bool:
        """Asks all ranks whether any was told to stop."""
        if trainer.world_size == 1:
            return self._signal != 0
        told = torch.tensor(float(self._signal != 0), device=pl_module.device)
        return bool(trainer.strategy.reduce(told, reduce_op="sum") > 0)

    def _save(self, trainer: pl.Trainer) -> None:
        save_checkpoint(trainer, self.folder, self.keep)
        trainer.strategy.barrier()  # the file is in its place before any process ends, and takes others with it
        self.stopped = True


def stopped_at(trainer: pl.Trainer) -> str:
    """What is told of a training that was stopped."""
    return f"checkpoint of step {trainer.global_step} saved; the same command goes on from there"
