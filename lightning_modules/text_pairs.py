"""Pairs of texts → batches of similar length."""

from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_modules.batching import NO_SPAN, Batch, dealt, length_batches, make_batch, pad
from lightning_modules.errors import PipelineError
from lightning_modules.token_store import TokenStore
from lightning_modules.transformer.config import TransformerConfig


class TextPairs:
    """Source and target texts, each ending in </s>, in batches of similar length."""

    def __init__(
        self, folder: Path, config: TransformerConfig, batch_tokens: int, max_source: int, max_target: int, seed: int
    ) -> None:
        """Texts longer than `max_source` or `max_target` tokens, </s> included, are cut; `cut` counts them."""
        self.source, self.target = TokenStore(folder / "source"), TokenStore(folder / "target")
        if len(self.source) != len(self.target) or not len(self.source):
            raise PipelineError(f"{folder} holds no pairs, or halves of pairs: run the tokenize stage again")
        self.config, self.batch_tokens = config, batch_tokens
        self.max_source, self.max_target = max_source, max_target
        self.nothing = config.pad_id  # a target that does not count
        self._firsts = [0]  # the first batch of each epoch so far
        lengths = self.source.lengths() + 1, self.target.lengths() + 1
        self.cut = {"source": int((lengths[0] > max_source).sum()), "target": int((lengths[1] > max_target).sum())}
        self.lengths = np.minimum(lengths[0], max_source), np.minimum(lengths[1], max_target)
        written = self.target.meta
        self.bytes_per_target: float | None = written.utf8_bytes / (written.tokens + written.documents)
        self.seed = seed
        self._epoch_batches = lru_cache(maxsize=2)(self._batches_of_epoch)

    def _batches_of_epoch(self, epoch: int) -> list[npt.NDArray[np.int64]]:
        return length_batches(*self.lengths, self.batch_tokens, np.random.default_rng((self.seed, 0, epoch)))

    @property
    def batches_per_epoch(self) -> int:
        """Of the first epoch; others have a few more or less."""
        return len(self._epoch_batches(0))

    def training_batch(self, number: int, part: int, parts: int) -> Batch:
        """A share of batch `number` of the endless sequence of epochs."""
        # Epochs differ by a batch or so in length, so their lengths are added up, not divided by.
        while number >= self._firsts[-1]:
            self._firsts.append(self._firsts[-1] + len(self._epoch_batches(len(self._firsts) - 1)))
        epoch = bisect_right(self._firsts, number) - 1
        return self._share(self._epoch_batches(epoch)[number - self._firsts[epoch]], part, parts)

    def validation_batches(self, part: int, parts: int) -> Iterator[Batch]:
        """Every pair once."""
        for batch in length_batches(*self.lengths, self.batch_tokens, None):
            yield self._share(batch, part, parts)

    def _share(self, records: npt.NDArray[np.int64], part: int, parts: int) -> Batch:
        source_BS, target_BT = self._padded(dealt(records, part, parts))
        if part >= len(records):
            target_BT = np.full_like(target_BT, self.nothing)
        return make_batch(source_BS, target_BT, self.config, int(self.lengths[1][records].sum()))

    def _padded(self, records: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        source = pad([self._with_eos(self.source, i, self.max_source) for i in records], self.config.pad_id)
        return source, pad([self._with_eos(self.target, i, self.max_target) for i in records], self.config.pad_id)

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
        self.nothing, self.bytes_per_target = NO_SPAN, None

    def _padded(self, records: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        sources = [self._with_eos(self.source, i, self.max_source) for i in self.records[records]]
        return pad(sources, self.config.pad_id), self.spans_N2[records]


def find_span(source_S: npt.NDArray[Any], target_T: npt.NDArray[Any]) -> tuple[int, int] | None:
    """First and last column of the first place where `target` stands in `source`."""
    count = len(target_T)
    for start in np.flatnonzero(source_S == target_T[0]) if count else ():
        if np.array_equal(source_S[start : start + count], target_T):
            return int(start), int(start) + count - 1
    return None
