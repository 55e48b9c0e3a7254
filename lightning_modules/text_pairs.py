"""Pairs of texts → batches of similar length: to write the second, to point at it in the first, or to choose a class.

What there is to read is listed at the start, tens of microseconds a pair that points; batches are made one by one.
"""

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
from lightning_modules.windows import cut_windows, kept

Ids = npt.NDArray[np.int64]


class TextPairs:
    """Source and target texts, each ending in </s>, in batches of similar length."""

    def __init__(
        self,
        folder: Path,
        config: TransformerConfig,
        batch_tokens: int,
        max_source: int,
        max_target: int,
        seed: int,
        keep_end: bool = False,
    ) -> None:
        """Texts longer than `max_source` or `max_target` tokens, </s> included, are cut; `cut` counts them.

        With `keep_end` a source loses its beginning, else its end.
        """
        self.source, self.target = TokenStore(folder / "source"), TokenStore(folder / "target")
        if len(self.source) != len(self.target) or not len(self.source):
            raise PipelineError(f"{folder} holds no pairs, or halves of pairs: run the tokenize stage again")
        self.config, self.batch_tokens = config, batch_tokens
        self.max_source, self.max_target, self.keep_end = max_source, max_target, keep_end
        self.nothing = config.pad_id  # a target that does not count
        self.first_batches = [0]  # of each epoch so far, and of the next
        lengths = self.source.lengths() + 1, self.target.lengths() + 1
        self.cut = {"source": int((lengths[0] > max_source).sum()), "target": int((lengths[1] > max_target).sum())}
        self.lengths = np.minimum(lengths[0], max_source), np.minimum(lengths[1], max_target)
        written = self.target.meta
        self.bytes_per_target: float | None = written.utf8_bytes / (written.tokens + written.documents)
        self.seed = seed
        self._epoch_batches = lru_cache(maxsize=2)(self._batches_of_epoch)

    def _batches_of_epoch(self, epoch: int) -> list[Ids]:
        return length_batches(*self.lengths, self.batch_tokens, np.random.default_rng((self.seed, 0, epoch)))

    @property
    def batches_per_epoch(self) -> int:
        """Of the first epoch; others have a few more or less."""
        return len(self._epoch_batches(0))

    def training_batch(self, number: int, part: int, parts: int) -> Batch:
        """A share of batch `number` of the endless sequence of epochs."""
        # Epochs differ by a batch or so in length, so their lengths are added up, not divided by.
        firsts = self.first_batches
        while number >= firsts[-1]:
            firsts.append(firsts[-1] + len(self._epoch_batches(len(firsts) - 1)))
        epoch = bisect_right(firsts, number) - 1
        return self._share(self._epoch_batches(epoch)[number - firsts[epoch]], part, parts)

    def validation_batches(self, part: int, parts: int) -> Iterator[Batch]:
        """Every pair once."""
        for batch in length_batches(*self.lengths, self.batch_tokens, None):
            yield self._share(batch, part, parts)

    def _share(self, records: Ids, part: int, parts: int) -> Batch:
        source_BS, target_BT = self._padded(dealt(records, part, parts))
        if part >= len(records):
            target_BT = np.full_like(target_BT, self.nothing)
        return make_batch(source_BS, target_BT, self.config, int(self.lengths[1][records].sum()))

    def _padded(self, records: Ids) -> tuple[Ids, Ids]:
        targets = [self._with_eos(self.target[int(i)], self.max_target) for i in records]
        return self._sources(records), pad(targets, self.config.pad_id)

    def _sources(self, records: Ids) -> Ids:
        sources = [self._with_eos(self.source[int(i)], self.max_source, self.keep_end) for i in records]
        return pad(sources, self.config.pad_id)

    def _with_eos(self, ids: npt.NDArray[Any], longest: int, keep_end: bool = False) -> Ids:
        return np.append(ids[kept(len(ids), longest, keep_end)], self.config.eos_id).astype(np.int64)


class SpanPairs(TextPairs):
    """Sources, and where in them the answer stands, for a model that points: a target is its first and last column.

    Besides `source` and `target` the folder holds the store `place`: for each pair the number of tokens before the
    context, and the answer's first and last token; neither where there is no answer, nothing at all where there should
    be one that does not stand in the source. A source longer than `max_source` is read in windows: all that hold the
    answer whole, and one of the others, drawn, in which there is none. The target is </s> then, twice.

    `missing` counts the pairs left out: the answer does not stand in the source, or is longer than `max_target`;
    `unanswerable` those without one; `cut` the questions that are longer than half a window.
    """

    def __init__(
        self, folder: Path, config: TransformerConfig, batch_tokens: int, max_source: int, max_target: int, seed: int
    ) -> None:
        """As of TextPairs. Raises PipelineError where no answer stands in its source."""
        super().__init__(folder, config, batch_tokens, max_source, max_target, seed)
        self.places = _beside(folder, "place", len(self.source))
        self.missing = self.unanswerable = 0
        self.cut = {"source": 0, "target": 0}
        rng, lengths = np.random.default_rng(0), self.source.lengths()  # the same windows whatever the seed
        rows = [row for record in range(len(lengths)) for row in self._windows(record, int(lengths[record]), rng)]
        if len(lengths) == self.missing + self.unanswerable:
            raise PipelineError(f"{folder}: no answer stands in its source, so there is nothing to point at")
        self.windows_N4, self.spans_N2 = np.split(np.array(rows, dtype=np.int64), [4], axis=1)
        _, questions_N, begins_N, ends_N = self.windows_N4.T
        self.lengths = questions_N + ends_N - begins_N + 1, np.full(len(rows), 2)
        self.nothing, self.bytes_per_target = NO_SPAN, None

    def _windows(self, record: int, tokens: int, rng: np.random.Generator) -> Iterator[tuple[int, ...]]:
        """(Record, tokens of the question, begin and end in the context; first and last column) of each window."""
        place = self.places[record].tolist()
        answered = len(place) == 3
        first, last = place[1:] if answered else (-1, -1)
        if not place or last - first >= self.max_target:
            self.missing += 1
            return
        self.unanswerable += not answered
        windows = cut_windows(tokens, place[0], self.max_source)
        holding = [begin for begin in windows.begins if begin <= first and last < windows.end(begin)]
        if answered and not holding:
            self.missing += 1
            return
        self.cut["source"] += windows.question < place[0]
        for begin in holding:
            shift = windows.question - begin
            yield record, windows.question, begin, windows.end(begin), first + shift, last + shift
        others = sorted(set(windows.begins).difference(holding))
        if others:
            begin = others[rng.integers(len(others))]
            null = windows.null(begin)
            yield record, windows.question, begin, windows.end(begin), null, null

    def _padded(self, records: Ids) -> tuple[Ids, Ids]:
        windows = [self._window(*row) for row in self.windows_N4[records].tolist()]
        return pad(windows, self.config.pad_id), self.spans_N2[records]

    def _window(self, record: int, question: int, begin: int, end: int) -> Ids:
        ids = self.source[record].astype(np.int64)
        return np.concatenate([ids[:question], ids[begin:end], [self.config.eos_id]])


class ClassPairs(TextPairs):
    """Sources and the numbers of their classes, for a model that chooses one: a target is one number.

    Besides `source` and `target` the folder holds the store `class`: for each pair its class's number, or nothing where
    the training data has no such class. `missing` counts these, which are left out.
    """

    def __init__(
        self,
        folder: Path,
        config: TransformerConfig,
        batch_tokens: int,
        max_source: int,
        max_target: int,
        seed: int,
        keep_end: bool = False,
    ) -> None:
        """As of TextPairs. Raises PipelineError where no pair has a known class."""
        super().__init__(folder, config, batch_tokens, max_source, max_target, seed, keep_end)
        classes = _beside(folder, "class", len(self.source))
        self.records = np.flatnonzero(classes.lengths())
        self.missing, self.cut["target"] = len(self.source) - len(self.records), 0
        if not len(self.records):
            raise PipelineError(f"{folder}: no record has a class that the training data has, too")
        self.class_N = np.array([classes[int(record)][0] for record in self.records], dtype=np.int64)
        self.lengths = self.lengths[0][self.records], np.ones(len(self.records), dtype=np.int64)
        self.nothing, self.bytes_per_target = NO_SPAN, None

    def _padded(self, records: Ids) -> tuple[Ids, Ids]:
        return self._sources(self.records[records]), self.class_N[records][:, None]


def _beside(folder: Path, name: str, records: int) -> TokenStore:
    store = TokenStore(folder / name)
    if len(store) != records:
        raise PipelineError(f"{store.folder} does not belong to the sources beside it: run the tokenize stage again")
    return store
