"""Pre-training text → batches: rows of equal length, none of them padded, corrupted by an objective.

The joined text (all documents, </s> behind each) is cut into windows. An epoch takes the windows in random order; GROUP
of them at a time are read, packed into rows, and their rows shuffled. So what a batch holds is a function of its number
alone; it costs the same wherever it stands, starting costs the same however long the text is, and nothing is stored
besides the text. A group is some two million tokens, 8 MB, made in 5 to 60 ms; two are kept. A batch of 16 × 128 tokens
then takes some 10 µs (`python -m benchmarks.loader`).
"""

from collections.abc import Iterator
from functools import lru_cache
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lightning_modules.batching import Batch, dealt, make_batch
from lightning_modules.errors import PipelineError
from lightning_modules.objectives import CausalLM, Corrupted, Mixture, Objective, PrefixLM
from lightning_modules.packing import best_fit, lay_out
from lightning_modules.token_store import TokenStore
from lightning_modules.transformer.config import TransformerConfig

WINDOW_TOKENS, WINDOW_ROWS = 1 << 16, 16  # of a window: about so many tokens, but at least so many rows
GROUP = 32  # windows whose rows are shuffled together
Ids = npt.NDArray[np.int64]
_VALIDATION = -1  # stands for the number of an epoch


class WindowOrder:
    """A random order of windows of `window_rows` rows, of which one may have fewer: costs the same for any number."""

    def __init__(self, rows: int, window_rows: int, key: tuple[int, ...]) -> None:
        """The order is a function of `key`, numbers of any size."""
        self.window_rows, self.key = window_rows, key
        self.whole, rest = divmod(rows, window_rows)
        self.count = self.whole + bool(rest)
        # The window with fewer rows, the text's last, may come anywhere too.
        self.missing = window_rows - rest if rest else 0
        self.short = permuted(0, self.count, (*key, 0)) if rest else self.count

    def window(self, place: int) -> int:
        """The window that comes at `place`."""
        return self.whole if place == self.short else permuted(place - (place > self.short), self.whole, (*self.key, 1))

    def first_row(self, place: int) -> int:
        """Rows of all windows before `place`."""
        return place * self.window_rows - (self.missing if place > self.short else 0)

    def place(self, row: int) -> int:
        """Where the window comes that holds the order's `row`."""
        return (row + (self.missing if row >= self.first_row(self.short + 1) else 0)) // self.window_rows


def permuted(number: int, count: int, key: tuple[int, ...]) -> int:
    """Where a pseudo-random permutation of range(count) takes `number`.

    A Feistel network on the smallest power of four that is large enough, walked until it comes out below `count` (Black
    and Rogaway 2002, "Ciphers with arbitrary finite domains", cycle walking): four times at most, on average.
    """
    bits = ((count - 1).bit_length() + 1) // 2
    while True:
        left, right = number >> bits, number & ((1 << bits) - 1)
        for turn in range(6):
            digest = blake2b(" ".join(map(str, (*key, turn, right))).encode(), digest_size=8).digest()
            left, right = right, left ^ (int.from_bytes(digest, "little") & ((1 << bits) - 1))
        number = left << bits | right
        if number < count:
            return number


class _Group(NamedTuple):
    """The shuffled rows of some windows: ids (R, L), the numbers of their documents (R, L), the first's place."""

    ids_RL: npt.NDArray[Any]
    documents_RL: npt.NDArray[Any] | None
    first_row: int


class TextRows:
    """Rows of text, corrupted afresh each time.

    `packing` is "joined": rows are cut from the joined text, and their documents see one another (as in T5, Raffel et
    al. 2020); or "best_fit": documents stay whole where they can (`packing.best_fit`) and do not see one another.
    """

    def __init__(
        self,
        store: TokenStore,
        config: TransformerConfig,
        objective: Objective,
        length: int,
        rows: int,
        validation_batches: int,
        seed: int,
        packing: str = "joined",
    ) -> None:
        """`rows` is the global batch size.

        Raises PipelineError where the store has fewer rows than one batch, or the objective cannot be packed.
        """
        self.store, self.config, self.objective, self.length = store, config, objective, length
        self.rows, self.seed, self.packed = rows, seed, packing == "best_fit"
        self.available = store.joined_length // length
        if self.available < rows:
            raise PipelineError(
                f"the text makes {self.available} rows of pretrain.sequence_length {length}, fewer than one "
                f"pretrain.batch_size ({rows}): give more text, or lower one of the two"
            )
        if self.packed and config.architecture == "decoder" and not _in_order(objective):
            raise PipelineError(
                "pretrain.packing best_fit: a decoder reads source and target as one sequence, where only "
                "pretrain.objective causal_lm and prefix_lm keep documents apart: take one of these, or packing joined"
            )
        self.window_rows = max(WINDOW_TOKENS // length, WINDOW_ROWS)
        self.batches_per_epoch = self.available // rows
        self.validation_count = min(validation_batches, self.batches_per_epoch)
        meta = store.meta
        self.bytes_per_target: float | None = meta.utf8_bytes / (meta.tokens + meta.documents)
        self._order = lru_cache(maxsize=2)(self._make_order)
        self._group = lru_cache(maxsize=2)(self._make_group)
        self._whole_batch = lru_cache(maxsize=1)(self._make_whole_batch)  # its parts are asked for one by one

    def training_batch(self, number: int, part: int, parts: int) -> Batch:
        """A share of batch `number`; the few rows at an epoch's end that fill no batch are left out of that epoch."""
        return self._share(self._whole_batch(number), part, parts)

    def validation_batches(self, part: int, parts: int) -> Iterator[Batch]:
        """The same rows with the same corruption each time, spread over the whole split."""
        for number in range(self.validation_count):
            yield self._share(self._corrupted(_VALIDATION, number * self.rows, (3, number)), part, parts)

    def _share(self, whole: Corrupted, part: int, parts: int) -> Batch:
        source_BS, target_BT = dealt(whole.source_BS, part, parts), dealt(whole.target_BT, part, parts)
        if part >= self.rows:
            target_BT = np.full_like(target_BT, self.config.pad_id)
        # make_batch counts a share that is the whole batch; to count twice would take a tenth longer.
        targets = None if parts == 1 else int(np.count_nonzero(whole.target_BT != self.config.pad_id))
        documents = whole.documents and (dealt(whole.documents[0], part, parts), dealt(whole.documents[1], part, parts))
        return make_batch(source_BS, target_BT, self.config, targets, documents)

    def _make_whole_batch(self, number: int) -> Corrupted:
        epoch, within = divmod(number, self.batches_per_epoch)
        return self._corrupted(epoch, within * self.rows, (self.seed, 1, number))

    def _corrupted(self, epoch: int, first: int, key: tuple[int, ...]) -> Corrupted:
        # The whole batch is corrupted, so that a row's corruption does not depend on how many share it.
        tokens_BL, documents_BL = self._read(epoch, first)
        return self.objective.packed(tokens_BL, documents_BL, key)

    def _read(self, epoch: int, first: int) -> tuple[Ids, Ids | None]:
        """Rows of an epoch from `first` on: ids (B, L) and, if packed, the numbers of their documents."""
        order, end, ids, documents = self._order(epoch), first + self.rows, [], []
        while first < end:
            group = self._group(epoch, order.place(first) // GROUP)
            of_batch = slice(first - group.first_row, end - group.first_row)
            ids.append(group.ids_RL[of_batch])
            if group.documents_RL is not None:
                documents.append(group.documents_RL[of_batch])
            first += len(ids[-1])
        tokens_BL = np.concatenate(ids, dtype=np.int64)
        return tokens_BL, np.concatenate(documents, dtype=np.int64) if documents else None

    def _make_order(self, epoch: int) -> WindowOrder:
        return WindowOrder(self.available, self.window_rows, self._key(epoch))

    def _make_group(self, epoch: int, number: int) -> _Group:
        order = self._order(epoch)
        places = range(number * GROUP, min((number + 1) * GROUP, order.count))
        text, all_ends, size = [], [], 0
        for place in places:
            start = order.window(place) * self.window_rows * self.length
            end = min(start + self.window_rows * self.length, self.available * self.length)
            ids_N, ends = self.store.joined(start, end, self.config.eos_id)
            text.append(ids_N)
            size += len(ids_N)
            all_ends.append(size - len(ids_N) + ends)
            if not len(ends) or ends[-1] < len(ids_N):  # a document that goes on behind the window is cut there
                all_ends.append(np.array([size]))
        text_N = np.concatenate(text)
        shuffled_R = np.random.default_rng((*self._key(epoch), number)).permutation(size // self.length)
        if not self.packed:
            return _Group(text_N.reshape(-1, self.length)[shuffled_R], None, order.first_row(places.start))
        ids_RL, documents_RL = lay_out(text_N, best_fit(np.concatenate(all_ends), self.length), self.length)
        return _Group(ids_RL[shuffled_R], documents_RL[shuffled_R], order.first_row(places.start))

    def _key(self, epoch: int) -> tuple[int, ...]:
        """Validation rows do not depend on the seed, so that runs with different ones can be compared."""
        return (2,) if epoch == _VALIDATION else (self.seed, 0, epoch)


def _in_order(objective: Objective) -> bool:
    """Whether source and target, one after the other, are the row."""
    if isinstance(objective, Mixture):
        return all(_in_order(part) for part, _ in objective.parts)
    return isinstance(objective, CausalLM | PrefixLM)
