"""Token stores → batches for Lightning, the same sequence of batches however often a run is killed.

Batch number n is a pure function of (seed, n): the order of an epoch comes from (seed, epoch), the corruption of a row
from (seed, n). There is no loader state to save or lose: training starts reading at the trainer's global step. Every
rank computes the same global batch and takes every `world_size`-th record of it. Batches are assembled in the training
process.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pytorch_lightning as pl

from lightning_modules.batching import Batch, length_batches, make_batch, pad
from lightning_modules.errors import PipelineError
from lightning_modules.objectives import Objective
from lightning_modules.token_store import TokenStore
from lightning_modules.transformer.config import TransformerConfig


class Batches(Protocol):
    """A split: an endless, seeded sequence of training batches, and one pass over it for validation."""

    def training_batch(self, number: int, rank: int, ranks: int) -> Batch:
        """This rank's share of training batch `number`."""
        ...

    def validation_batches(self, rank: int, ranks: int) -> Iterator[Batch]:
        """This rank's share of the validation batches, the same at every call."""
        ...


def _rng(*key: int) -> np.random.Generator:
    return np.random.default_rng(key)


class TextRows:
    """Documents joined by </s> and cut into rows of equal length; each row corrupted afresh by the objective."""

    def __init__(
        self,
        store: TokenStore,
        config: TransformerConfig,
        objective: Objective,
        length: int,
        rows: int,
        validation_batches: int,
        seed: int,
    ) -> None:
        """`rows` is the global batch size. Raises PipelineError where the store has fewer rows than one batch."""
        self.store, self.config, self.objective, self.length = store, config, objective, length
        self.rows, self.seed = rows, seed
        self.ends = np.cumsum(store.lengths() + 1)  # where each document's </s> ends in the joined text
        self.available = int(self.ends[-1]) // length if len(self.ends) else 0
        if self.available < rows:
            raise PipelineError(
                f"the text makes {self.available} rows of pretrain.sequence_length {length}, fewer than one "
                f"pretrain.batch_size ({rows}): give more text, or lower one of the two"
            )
        self.validation_count = min(validation_batches, self.available // rows)
        self._epoch_order = lru_cache(maxsize=2)(lambda epoch: _rng(seed, 0, epoch).permutation(self.available))

    def training_batch(self, number: int, rank: int, ranks: int) -> Batch:
        """Rows of the epoch's shuffled order; the few at its end that fill no batch are left to the next epoch."""
        epoch, within = divmod(number, self.available // self.rows)
        rows = self._epoch_order(epoch)[within * self.rows : (within + 1) * self.rows]
        return self._corrupted(rows, _rng(self.seed, 1, number), rank, ranks)

    def validation_batches(self, rank: int, ranks: int) -> Iterator[Batch]:
        """The same rows with the same corruption each time, spread over the whole split."""
        rows = _rng(2).permutation(self.available)
        for number in range(self.validation_count):
            chosen = rows[number * self.rows : (number + 1) * self.rows]
            yield self._corrupted(chosen, _rng(3, number), rank, ranks)

    def _corrupted(self, rows: npt.NDArray[np.int64], rng: np.random.Generator, rank: int, ranks: int) -> Batch:
        # The whole batch is corrupted, so that a row's corruption does not depend on the number of ranks.
        source, target = self.objective(np.stack([self._row(int(row)) for row in rows]), rng)
        return make_batch(source[rank::ranks], target[rank::ranks], self.config)

    def _row(self, row: int) -> npt.NDArray[np.int64]:
        start, end = row * self.length, (row + 1) * self.length
        first = int(np.searchsorted(self.ends, start, side="right"))
        last = int(np.searchsorted(self.ends, end, side="left"))
        eos = np.array([self.config.eos_id])
        pieces = [part for document in range(first, last + 1) for part in (self.store[document], eos)]
        before = start - (int(self.ends[first - 1]) if first else 0)
        return np.concatenate(pieces)[before : before + self.length].astype(np.int64)


class TextPairs:
    """Source and target texts, each ending in </s>, in batches of similar length."""

    def __init__(
        self, folder: Path, config: TransformerConfig, batch_tokens: int, max_source: int, max_target: int, seed: int
    ) -> None:
        """Texts longer than `max_source` or `max_target` tokens, </s> included, are cut; `cut` counts them."""
        self.source, self.target = TokenStore(folder / "source"), TokenStore(folder / "target")
        if len(self.source) != len(self.target) or not len(self.source):
            raise PipelineError(f"{folder} holds no pairs, or halves of pairs: run the tokenize stage again")
        self.config, self.batch_tokens, self.seed = config, batch_tokens, seed
        self.max_source, self.max_target = max_source, max_target
        lengths = self.source.lengths() + 1, self.target.lengths() + 1
        self.cut = {"source": int((lengths[0] > max_source).sum()), "target": int((lengths[1] > max_target).sum())}
        self.lengths = np.minimum(lengths[0], max_source), np.minimum(lengths[1], max_target)
        self._epoch_batches = lru_cache(maxsize=2)(self._batches_of_epoch)
        self._first_batches: dict[int, list[int]] = {}  # for a number of ranks, the first batch of each epoch

    def _batches_of_epoch(self, epoch: int, ranks: int) -> list[npt.NDArray[np.int64]]:
        return length_batches(*self.lengths, self.batch_tokens, ranks, _rng(self.seed, 0, epoch))

    def training_batch(self, number: int, rank: int, ranks: int) -> Batch:
        """Batch `number` of the endless sequence of epochs."""
        # Epochs differ by a batch or so in length, so their lengths are added up, not divided by.
        firsts = self._first_batches.setdefault(ranks, [0])
        while number >= firsts[-1]:
            firsts.append(firsts[-1] + len(self._epoch_batches(len(firsts) - 1, ranks)))
        epoch = bisect_right(firsts, number) - 1
        return self._batch(self._epoch_batches(epoch, ranks)[number - firsts[epoch]][rank::ranks])

    def validation_batches(self, rank: int, ranks: int) -> Iterator[Batch]:
        """Every pair once."""
        for batch in length_batches(*self.lengths, self.batch_tokens, ranks, None):
            yield self._batch(batch[rank::ranks])

    def _batch(self, records: npt.NDArray[np.int64]) -> Batch:
        source = pad([self._with_eos(self.source, i, self.max_source) for i in records], self.config.pad_id)
        target = pad([self._with_eos(self.target, i, self.max_target) for i in records], self.config.pad_id)
        return make_batch(source, target, self.config)

    def _with_eos(self, store: TokenStore, record: int, longest: int) -> npt.NDArray[np.int64]:
        return np.append(store[int(record)][: longest - 1], self.config.eos_id).astype(np.int64)


class SpanPairs(TextPairs):
    """Pairs whose target stands in the source, for a model that points: the target is its first and last column.

    `missing` counts the pairs left out: the target was cut off, its tokens fall otherwise, or it is too long to show.
    """

    def __init__(
        self, folder: Path, config: TransformerConfig, batch_tokens: int, max_source: int, max_target: int, seed: int
    ) -> None:
        """As of TextPairs. Raises PipelineError where no target stands in its source."""
        super().__init__(folder, config, batch_tokens, max_source, max_target, seed)
        pairs = ((self.source[n][: max_source - 1], self.target[n]) for n in range(len(self.source)))
        spans = [find_span(source, target) if len(target) <= max_target else None for source, target in pairs]
        self.records = np.array([record for record, span in enumerate(spans) if span], dtype=np.int64)
        self.missing, self.cut["target"] = len(spans) - len(self.records), 0
        if not len(self.records):
            raise PipelineError(f"{folder}: no target stands in its source, so there is nothing to point at")
        self.spans_N2 = np.array([span for span in spans if span], dtype=np.int64)
        self.lengths = self.lengths[0][self.records], np.full(len(self.records), 2)

    def _batch(self, records: npt.NDArray[np.int64]) -> Batch:
        sources = [self._with_eos(self.source, i, self.max_source) for i in self.records[records]]
        return make_batch(pad(sources, self.config.pad_id), self.spans_N2[records], self.config)


def find_span(source_S: npt.NDArray[Any], target_T: npt.NDArray[Any]) -> tuple[int, int] | None:
    """First and last column of the first place where `target` stands in `source`."""
    count = len(target_T)
    for start in np.flatnonzero(source_S == target_T[0]) if count else ():
        if np.array_equal(source_S[start : start + count], target_T):
            return int(start), int(start) + count - 1
    return None


@dataclass
class _TrainingLoader:
    """Iterates from the trainer's global step on, read when iteration starts: after a checkpoint was restored."""

    trainer: pl.Trainer
    batches: Batches

    def __iter__(self) -> Iterator[Batch]:
        number = self.trainer.global_step
        while True:
            yield self.batches.training_batch(number, self.trainer.global_rank, self.trainer.world_size)
            number += 1


@dataclass
class _ValidationLoader:
    trainer: pl.Trainer
    batches: Batches

    def __iter__(self) -> Iterator[Batch]:
        return self.batches.validation_batches(self.trainer.global_rank, self.trainer.world_size)


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
