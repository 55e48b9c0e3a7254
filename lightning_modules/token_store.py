"""Token ids on disk: memory-mapped shards with a document index.

A store is a folder: `00000.bin`, `00001.bin`, … hold token ids back to back (uint16 up to 65,536 ids, else uint32);
`00000.idx`, … hold the offset of each document's first token and, last, the shard's length (int64); `meta.json` holds
the counts and a digest. Opening a store maps the files and reads nothing else: what it costs depends on the number of
shards alone, and processes on one machine share the pages.
"""

import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_modules.errors import PipelineError


@dataclass(frozen=True)
class StoreMeta:
    """What a store holds. `utf8_bytes` of the original text turns nats per token into bits per byte."""

    dtype: str
    vocab_size: int
    tokenizer_sha256: str
    shards: int
    documents: int
    tokens: int
    utf8_bytes: int
    content_sha256: str = ""  # of the ids and of how they are cut into documents: two stores may have the same counts


def token_dtype(vocab_size: int) -> str:
    """The smallest of uint16 and uint32 that holds every id below `vocab_size`."""
    return "uint16" if vocab_size <= 2**16 else "uint32"


def write_shard(folder: Path, number: int, documents: Iterable[Sequence[int]], dtype: str) -> tuple[int, int]:
    """Writes shard `number` of a store; returns (documents, tokens) written. Shards may be written in parallel."""
    offsets = [0]
    with (folder / f"{number:05d}.bin").open("wb") as file:
        for ids in documents:
            file.write(np.asarray(ids, dtype=dtype).tobytes())
            offsets.append(offsets[-1] + len(ids))
    (folder / f"{number:05d}.idx").write_bytes(np.asarray(offsets, dtype=np.int64).tobytes())
    return len(offsets) - 1, offsets[-1]


def write_meta(folder: Path, meta: StoreMeta) -> None:
    """Writes the counts, last: a folder without them is not a store."""
    (folder / "meta.json").write_text(json.dumps(asdict(meta), indent=2) + "\n")


class TokenStore:
    """A store opened for reading: `store[i]` is document i's ids, a view of the mapped file."""

    def __init__(self, folder: Path) -> None:
        """Raises PipelineError where `folder` is not a whole store."""
        self.folder = folder
        try:
            self.meta = StoreMeta(**json.loads((folder / "meta.json").read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise PipelineError(f"{folder} is not a token store ({error}): run the tokenize stage again") from error
        self._offsets = [_map(folder / f"{n:05d}.idx", "int64") for n in range(self.meta.shards)]
        self._tokens = [_map(folder / f"{n:05d}.bin", self.meta.dtype) for n in range(self.meta.shards)]
        self._first_document = np.cumsum([0] + [len(offsets) - 1 for offsets in self._offsets])
        columns = (len(ids) + len(offsets) - 1 for ids, offsets in zip(self._tokens, self._offsets, strict=True))
        self._first_column = list(accumulate(columns, initial=0))
        if self._first_document[-1] != self.meta.documents or sum(map(len, self._tokens)) != self.meta.tokens:
            raise PipelineError(f"{folder} does not hold what its meta.json says: run the tokenize stage again")

    def require_tokenizer(self, sha256: str) -> None:
        """Raises PipelineError where the ids were made by another tokenizer than the one with this digest."""
        if self.meta.tokenizer_sha256 != sha256:
            raise PipelineError(f"{self.folder} was made with another tokenizer: run the tokenize stage again")

    def __len__(self) -> int:
        return self.meta.documents

    def __getitem__(self, document: int) -> npt.NDArray[Any]:
        if not 0 <= document < len(self):
            raise IndexError(document)
        shard = int(np.searchsorted(self._first_document, document, side="right")) - 1
        within = document - self._first_document[shard]
        start, end = self._offsets[shard][within : within + 2]
        return self._tokens[shard][start:end]

    @property
    def joined_length(self) -> int:
        """Tokens of all documents, one </s> behind each counted in."""
        return self.meta.tokens + self.meta.documents

    def joined(self, start: int, end: int, eos_id: int) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        """Ids (end - start,) of the text of all documents, `eos_id` behind each; and where in them documents end.

        What stands before `start` costs a binary search in the index. Raises IndexError beyond the text's end.
        """
        if not 0 <= start <= end <= self.joined_length:
            raise IndexError((start, end))
        ids_N, all_ends, done = np.empty(end - start, self.meta.dtype), [np.zeros(0, np.int64)], 0
        shard = bisect_right(self._first_column, start) - 1
        while done < end - start:
            first_column, next_column = self._first_column[shard : shard + 2]
            begin, stop = start + done - first_column, min(end, next_column) - first_column
            ends = self._read(shard, begin, stop, eos_id, ids_N[done : done + stop - begin])
            all_ends.append(done + ends)
            done, shard = done + stop - begin, shard + 1
        return ids_N, np.concatenate(all_ends)

    def _read(self, shard: int, begin: int, stop: int, eos_id: int, ids_N: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """Fills `ids` with the columns from `begin` to `stop` of a shard's joined text; where documents end in them."""
        offsets = self._offsets[shard]

        def column(document: int) -> int:
            return int(offsets[document]) + document  # one </s> behind each document before it

        documents = range(len(offsets))
        first = bisect_right(documents, begin, key=column) - 1
        after = bisect_left(documents, stop, lo=first, key=column)
        ends = offsets[first + 1 : after + 1] + np.arange(first + 1, after + 1)
        ends = ends[ends <= stop] - begin
        text = np.ones(stop - begin, np.bool_)
        text[ends - 1] = False
        ids_N[text] = self._tokens[shard][begin - first : stop - first - len(ends)]
        ids_N[ends - 1] = eos_id
        return ends

    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens in each document, shape (documents,): reads the whole index."""
        return np.concatenate([np.diff(offsets) for offsets in self._offsets] or [np.zeros(0, np.int64)])


def _map(path: Path, dtype: str) -> npt.NDArray[Any]:
    """Maps a flat array; an empty file, which cannot be mapped, is an empty array."""
    try:
        # A plain view: slicing an object of numpy's class for maps takes five times as long.
        return np.asarray(np.memmap(path, dtype=dtype, mode="r")) if path.stat().st_size else np.zeros(0, dtype)
    except (OSError, ValueError) as error:
        raise PipelineError(f"{path} cannot be read ({error}): run the tokenize stage again") from error
