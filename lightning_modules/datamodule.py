"""Batches for Lightning, the same sequence of them however often a run is killed.

Batch number n is a pure function of (seed, n), so there is no loader state to lose: training starts reading at the
trainer's global step. Every rank knows the whole batch of a step and takes its share of it, in as many parts as
gradients are accumulated over. Batches are assembled in the training process.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from lightning_modules.batching import Batch
from lightning_modules.lightning import pl
from lightning_modules.parallel import data_rank


class Batches(Protocol):
    """A split: an endless, seeded sequence of training batches, and one pass over it for validation.

    A batch is dealt out into `parts`; which records it has does not depend on their number.
    """

    bytes_per_target: float | None  # UTF-8 bytes of text behind a target token, on average; None: targets are no text

    @property
    def batches_per_epoch(self) -> int:
        """Of all ranks together."""
        ...

    def training_batch(self, number: int, part: int, parts: int) -> Batch:
        """A share of training batch `number`."""
        ...

    def validation_batches(self, part: int, parts: int) -> Iterator[Batch]:
        """A share of the validation batches, the same at every call."""
        ...


@dataclass
class _TrainingLoader:
    """Iterates from the trainer's global step on, read when iteration starts: after a checkpoint was restored."""

    trainer: pl.Trainer
    batches: Batches

    def __iter__(self) -> Iterator[Batch]:
        number, (rank, ranks) = self.trainer.global_step, data_rank(self.trainer)
        parts = self.trainer.accumulate_grad_batches
        while True:
            for part in range(parts):
                yield self.batches.training_batch(number, part * ranks + rank, parts * ranks)
            number += 1


@dataclass
class _ValidationLoader:
    trainer: pl.Trainer
    batches: Batches

    def __iter__(self) -> Iterator[Batch]:
        return self.batches.validation_batches(*data_rank(self.trainer))


class TextDataModule(pl.LightningDataModule):
    """The one data module: pre-training and fine-tuning differ in the `Batches` it is given."""

    def __init__(self, train: Batches, validation: Batches) -> None:
        super().__init__()
        self.train, self.validation = train, validation

    def train_dataloader(self) -> Any:
        """Endless: the trainer stops at its number of steps."""
        assert self.trainer is not None
        return _TrainingLoader(self.trainer, self.train)

    def val_dataloader(self) -> Any:
        """One pass over the validation batches."""
        assert self.trainer is not None
        return _ValidationLoader(self.trainer, self.validation)
