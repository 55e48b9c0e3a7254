"""Warnings that stop nothing: a model that learns its text by heart, a text too small for the steps asked for."""

from math import inf
from typing import Any

from lightning_modules.batching import Batch
from lightning_modules.callbacks import step_done
from lightning_modules.guards import StepGuard
from lightning_modules.lightning import pl
from lightning_modules.module import TransformerModule

GAP = 0.1  # share by which the validation loss may exceed the training loss
GOOD_EPOCHS = 4  # Muennighoff et al. 2023, arXiv:2305.16264: up to there a repeated text is nearly as good as a new one


class GapWarning(pl.Callback):
    """Says once that the model begins to know its training text by heart.

    That is: the validation loss is above the mean training loss since the last validation by more than a tenth, and
    above the best so far. Dropout and label smoothing raise the training loss, so with them it is said later.
    """

    def __init__(self, guard: StepGuard) -> None:
        """`guard` knows the training loss, and comes before this in the list of callbacks; Checkpoints after it."""
        self.guard = guard
        self.total, self.steps, self.best, self.told = 0.0, 0, inf, False

    def state_dict(self) -> dict[str, Any]:
        """Plain values, saved in every checkpoint."""
        return {"total": self.total, "steps": self.steps, "best": self.best, "told": self.told}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes them up again."""
        self.total, self.steps = state_dict["total"], state_dict["steps"]
        self.best, self.told = state_dict["best"], state_dict["told"]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Adds the step's loss."""
        if step_done(trainer, batch_idx):
            self.total, self.steps = self.total + self.guard.loss, self.steps + 1

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compares."""
        assert isinstance(pl_module, TransformerModule)
        loss, best = min(pl_module.validation_losses.values()), self.best
        mean = self.total / self.steps if self.steps else inf
        self.total, self.steps, self.best = 0.0, 0, min(loss, best)
        if best < loss > (1 + GAP) * mean and not self.told:
            self.told = True
            if trainer.is_global_zero:
                print(
                    f"{self.guard.name}: warning: at step {trainer.global_step} the validation loss, {loss:.3f}, is "
                    f"{loss / mean - 1:.0%} above the training loss and worse than the best, {best:.3f}: the model "
                    "learns its text by heart. Set early_stopping_patience, raise dropout, or give more text",
                    flush=True,
                )


def repetition(name: str, steps: int, batches_per_epoch: int) -> str | None:
    """A warning where `steps` go over the training text too often; `name` is the section or task in params.yaml."""
    epochs = steps / batches_per_epoch
    if epochs <= GOOD_EPOCHS:
        return None
    return (
        f"{name}: warning: {name}.steps {steps} goes {epochs:.1f} times over the training text ({batches_per_epoch} "
        f"batches); beyond {GOOD_EPOCHS} times it teaches less and less: {GOOD_EPOCHS * batches_per_epoch} steps would "
        "do, or more text"
    )
