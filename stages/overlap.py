"""Which of some n-grams stand in prepared texts, and where each stands first: on all cores, a row group a job.

The n-grams are given as sorted hashes; workers map them from a file. Most n-grams of a text are none of them, and a
table of the hashes' first bits says so at once. Memory grows with the n-grams looked for, not with the texts; one core
reads 20 million characters a second.
"""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from lightning_modules.errors import PipelineError
from stages.console import progress
from stages.ngrams import Hashes, Numbers, ngrams, short_units, words
from stages.parallel import count, ordered_results
from stages.tasks import PRETRAINING, PRETRAINING_FIELDS, TASKS, untagged

First = npt.NDArray[np.uint32]  # (G,): for each n-gram the first row that has it, from 1; 0: none has it
WORTH = 1 << 24  # bytes of parquet that a further worker is for: some 3 s of work
_CHARACTERS = 2_000_000  # hashed at a time: some 200 MB


@dataclass(frozen=True)
class LookUp:
    """One row group of a file of texts, to be looked up in the n-grams whose sorted hashes are saved in `index`."""

    file: Path
    columns: tuple[str, ...]
    row_group: int
    first_row: int
    index: Path
    ngram: int


def columns_of(source: str) -> tuple[str, ...]:
    """The text columns of PURPOSE/SPLIT."""
    purpose = source.split("/")[0]
    return PRETRAINING_FIELDS if purpose == PRETRAINING else TASKS[purpose].fields


def compared(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The texts of all rows as they are compared: a task's first field, where its source stands, without the tag.

    `prepare` writes the tag; the same text in other data has none, or another.
    """
    if tuple(columns) == PRETRAINING_FIELDS:
        return [text for row in rows for text in row]
    return [text if place else untagged(text) for row in rows for place, text in enumerate(row)]


def open_split(prepared: Path, source: str) -> Any:
    """The parquet file of PURPOSE/SPLIT. Raises PipelineError where it cannot be read."""
    path = prepared / f"{source}.parquet"
    try:
        return pq.ParquetFile(path)
    except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
        raise PipelineError(f"{path} cannot be read ({error}): run the prepare stage again") from error


def first_rows(grams_G: Hashes, prepared: Path, sources: Sequence[str], ngram: int, workers: int) -> dict[str, First]:
    """For each source (PURPOSE/SPLIT) where it has each of the n-grams, whose hashes are sorted, first."""
    first_G = {source: np.zeros(len(grams_G), np.uint32) for source in sources}
    with tempfile.TemporaryDirectory(dir=prepared.parent, prefix=".leakage-") as folder:  # all workers see it
        index = Path(folder) / "ngrams.npy"
        np.save(index, grams_G)
        jobs = [(source, job) for source in sources for job in look_ups(source, prepared, index, ngram)]
        with progress(name="leakage", unit="text") as bar:
            size = sum(file.stat().st_size for file in {job.file for _, job in jobs})
            workers = max(1, min(workers, len(jobs), 1 + size // WORTH))
            results = ordered_results(_look_up, [job for _, job in jobs], workers, bar)
            for (source, _), (places, rows) in zip(jobs, results, strict=True):
                new = first_G[source][places] == 0
                first_G[source][places[new]] = rows[new] + 1
    return first_G


def read_rows(prepared: Path, source: str, wanted: set[int]) -> dict[int, tuple[str, str]]:
    """Id and text of some records of PURPOSE/SPLIT, by the number of their row."""
    file, columns, first, found = open_split(prepared, source), columns_of(source), 0, dict[int, tuple[str, str]]()
    for number in range(file.num_row_groups):
        size = file.metadata.row_group(number).num_rows
        here = sorted(row for row in wanted if first <= row < first + size)
        if here:
            table = file.read_row_group(number, columns=["id", *columns])
            for row in here:
                [values] = table.slice(row - first, 1).to_pylist()  # `take` would load pandas
                found[row] = values["id"], "\n".join(values[column] for column in columns)
        first += size
    return found


def portions(texts: list[str]) -> Iterator[tuple[int, list[str]]]:
    """The texts, as many at a time as are hashed at once, with the number of the first."""
    start = size = 0
    for end, text in enumerate(texts, start=1):
        size += len(text)
        if size >= _CHARACTERS or end == len(texts):
            yield start, texts[start:end]
            start, size = end, 0


def all_hashes(texts: Sequence[str], ngram: int) -> Iterator[tuple[Hashes, Numbers]]:
    """Hashes of all that texts hold, with the number of the text: n-grams, shorter lines, shorter texts."""
    found = words(texts)
    yield ngrams(found, ngram)
    hashes, lines = short_units(found, found.lines_L, ngram)
    text_L = np.repeat(np.arange(len(texts)), [text.count("\n") + 1 for text in texts])
    yield hashes, text_L[lines]
    yield short_units(found, found.texts_T, ngram)


def look_ups(source: str, prepared: Path, index: Path, ngram: int) -> Iterator[LookUp]:
    """A job for each row group of PURPOSE/SPLIT.

    Workers keep an index by its path: two indices must not have the same one after another.
    """
    file, first = open_split(prepared, source), 0
    for number in range(file.num_row_groups):
        yield LookUp(prepared / f"{source}.parquet", columns_of(source), number, first, index, ngram)
        first += file.metadata.row_group(number).num_rows


def hits(job: LookUp) -> Iterator[tuple[Numbers, Numbers]]:
    """The places in the index of what the rows hold of it, and the row of each; a portion of texts at a time."""
    grams_G, maybe = _index(job.index)
    table = pq.ParquetFile(job.file).read_row_group(job.row_group, columns=list(job.columns))
    rows = zip(*(table[column].to_pylist() for column in job.columns), strict=True)
    for first, texts in portions(compared(job.columns, rows)):
        places, holders = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for hashes, owners in all_hashes(texts, job.ngram):
            likely = np.flatnonzero(maybe[_first_bits(hashes, maybe)])
            place = np.searchsorted(grams_G, hashes[likely])
            hit = grams_G[np.minimum(place, len(grams_G) - 1)] == hashes[likely] if len(grams_G) else place > 0
            places.append(place[hit])
            holders.append((owners[likely][hit] + first) // len(job.columns) + job.first_row)
        yield np.concatenate(places), np.concatenate(holders)
        count(len(texts) // len(job.columns))


def _look_up(job: LookUp) -> tuple[Numbers, Numbers]:
    """The places in the index of what the rows hold of it, each once, and the row that holds each."""
    places, holders = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for of_portion, rows in hits(job):
        places.append(of_portion)
        holders.append(rows)
    found, which = np.unique(np.concatenate(places), return_index=True)
    return found, np.concatenate(holders)[which]


@lru_cache(maxsize=1)
def _index(path: Path) -> tuple[Hashes, npt.NDArray[np.bool_]]:
    """The sorted hashes, and for each value of their first bits whether one begins so."""
    grams_G = np.load(path, mmap_mode="r")
    maybe = np.zeros(1 << min(26, max(16, (4 * len(grams_G)).bit_length())), dtype=bool)
    maybe[_first_bits(grams_G, maybe)] = True
    return grams_G, maybe


def _first_bits(hashes: Hashes, table: npt.NDArray[np.bool_]) -> Numbers:
    bits = len(table).bit_length() - 1
    return (hashes >> np.uint64(64 - bits)).astype(np.int64)
