"""Records sorted, freed of duplicates and split: an external merge sort, so that memory does not grow with the data.

A record is (id, group, origin, fields …). Records gather in a `Runs`, which writes them as sorted files of some
32 million characters; `write_splits` merges the files, keeps one record of each id and writes the three splits.
Costs about 10 µs a record and, for a while, the disk space of the records uncompressed.
"""

import hashlib
import heapq
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lightning_modules.errors import PipelineError

SPLITS = ("train", "validation", "test")  # of records of one id that of the first of these stays
KEYS = ("id", "group", "origin")
ROW_GROUP = 4096  # records: what one worker reads at a time
_RUN_CHARACTERS = 32_000_000
_HELD_CHARACTERS = 250_000  # of each run, about, while merging
_MOST_OPEN = 256  # runs merged at once: each is an open file, of which a process may have 1,024 on most systems
Record = tuple[str, ...]


def digest(*texts: str) -> str:
    """The first 16 hexadecimal digits of the texts' SHA-256."""
    return hashlib.sha256("\x1f".join(texts).encode()).hexdigest()[:16]


def split_of(group: str, validation_share: float, test_share: float) -> str:
    """The split of a group depends on nothing but its name and the shares: more data never moves a group.

    Test takes the lower end of the hash's range and validation the upper, so that changing one share leaves the other
    split alone.
    """
    place = int(digest(group), 16) / 16**16
    if place < test_share:
        return "test"
    return "validation" if place >= 1 - validation_share else "train"


class Runs:
    """Takes records in any order and writes them to `folder` as sorted files."""

    def __init__(self, folder: Path, columns: Sequence[str]) -> None:
        self.paths: list[Path] = []
        self._folder = folder
        self._columns = columns
        self._records: list[Record] = []
        self._characters = 0

    def add(self, record: Record) -> None:
        """Takes one record: (id, group, origin, fields …)."""
        self._records.append(record)
        self._characters += sum(map(len, record))
        if self._characters >= _RUN_CHARACTERS:
            self.flush()

    def flush(self) -> None:
        """Writes what is still held. Records of one id stay in the order in which they came."""
        if not self._records:
            return
        path = self._folder / f"{len(self.paths):05d}.arrow"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._records.sort(key=itemgetter(0))
        table = _table(self._records, self._columns)
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=max(1, _HELD_CHARACTERS * len(table) // self._characters))
        self.paths.append(path)
        self._records = []
        self._characters = 0


@dataclass
class Kept:
    """What became of the records of a purpose, counted by origin."""

    duplicates: Counter[str] = field(default_factory=Counter)
    records: Counter[tuple[str, str]] = field(default_factory=Counter)  # by (origin, split)
    characters: Counter[str] = field(default_factory=Counter)


def write_splits(
    runs: Sequence[Path], folder: Path, columns: Sequence[str], validation_share: float, test_share: float
) -> Kept:
    """Merges sorted runs into `folder`/{train,validation,test}.parquet, ordered by id, each id once.

    Of records with the same id, which may be of groups in different splits, one of the split that comes first in SPLITS
    is kept: more data may move a record towards training, but never from it to where it would be a test of what was
    learned. Of several of that split the first of the first run is kept.
    """
    kept = Kept()
    folder.mkdir(parents=True)
    runs = _fewer(runs, folder / "merged", columns)
    writers = {split: _SplitWriter(folder / f"{split}.parquet", columns) for split in SPLITS}
    try:
        for _, equals in groupby(heapq.merge(*map(_records_of, runs), key=itemgetter(0)), key=itemgetter(0)):
            record, split = _one_of(equals, validation_share, test_share, kept.duplicates)
            writers[split].add(record)
            kept.records[record[2], split] += 1
            kept.characters[record[2]] += sum(map(len, record[3:]))
    finally:
        for writer in writers.values():
            writer.close()
    shutil.rmtree(folder / "merged", ignore_errors=True)
    return kept


def _one_of(
    equals: Iterator[Record], validation_share: float, test_share: float, duplicates: Counter[str]
) -> tuple[Record, str]:
    """The first record of the split that comes first, and that split; the other records are counted as duplicates."""
    chosen = next(equals)
    split = split_of(chosen[1], validation_share, test_share)
    for record in equals:
        other = split_of(record[1], validation_share, test_share)
        if SPLITS.index(other) < SPLITS.index(split):
            duplicates[chosen[2]] += 1
            chosen, split = record, other
        else:
            duplicates[record[2]] += 1
    return chosen, split


def _fewer(runs: Sequence[Path], folder: Path, columns: Sequence[str]) -> Sequence[Path]:
    """The same records in the same order in at most _MOST_OPEN runs: neighbours are merged, as often as it takes."""
    level = 0
    while len(runs) > _MOST_OPEN:
        folder.mkdir(exist_ok=True)
        parts = [runs[first : first + _MOST_OPEN] for first in range(0, len(runs), _MOST_OPEN)]
        runs = [_merged(part, folder / f"{level}-{number:05d}.arrow", columns) for number, part in enumerate(parts)]
        level += 1
    return runs


def _merged(runs: Sequence[Path], path: Path, columns: Sequence[str]) -> Path:
    held, characters = list[Record](), 0
    with pa.ipc.new_file(path, _schema(columns)) as writer:
        for record in heapq.merge(*map(_records_of, runs), key=itemgetter(0)):
            held.append(record)
            characters += sum(map(len, record))
            if characters >= _HELD_CHARACTERS:
                writer.write_table(_table(held, columns))
                held, characters = [], 0
        if held:
            writer.write_table(_table(held, columns))
    return path


def read_split(folder: Path, split: str, most: int) -> list[dict[str, str]]:
    """The first `most` records of a split (0: all): sorted by a hash of their content, they are a random choice.

    Raises PipelineError where there are none.
    """
    path = folder / f"{split}.parquet"
    try:
        with pq.ParquetFile(path) as file:  # `pq.read_table` would load pandas
            records: list[dict[str, str]] = file.read().to_pylist()
    except (OSError, pa.ArrowException) as error:  # missing, or damaged
        raise PipelineError(f"{path} cannot be read ({error}): run the prepare stage again") from error
    if not records:
        raise PipelineError(f"{path} holds no record: give the task more data, or raise prepare.{split}_share")
    return records[:most] if most else records


class _SplitWriter:
    """A parquet file in row groups of ROW_GROUP records."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self._columns = columns
        self._writer = pq.ParquetWriter(path, _schema(columns), compression="zstd")
        self._records: list[Record] = []

    def add(self, record: Record) -> None:
        self._records.append(record)
        if len(self._records) == ROW_GROUP:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._records:
            self._writer.write_table(_table(self._records, self._columns))
            self._records = []


def _schema(columns: Sequence[str]) -> pa.Schema:
    return pa.schema([(column, pa.string()) for column in columns])


def _table(records: Sequence[Record], columns: Sequence[str]) -> pa.Table:
    return pa.table([pa.array(values, pa.string()) for values in zip(*records, strict=True)], schema=_schema(columns))


def _records_of(run: Path) -> Iterator[Record]:
    with pa.memory_map(str(run)) as source:
        reader = pa.ipc.open_file(source)
        for number in range(reader.num_record_batches):
            yield from zip(*(column.to_pylist() for column in reader.get_batch(number).columns), strict=True)
