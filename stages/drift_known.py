"""What the models know already: the ids of all prepared records and the words of the training texts, kept before new
data replaces them. So a later look tells new records from known ones.

Costs a reading of the ids, 8 bytes a record on disk, and of at most MOST_CHARACTERS of training text: some seconds.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from lightning_modules.errors import PipelineError
from stages.ngrams import parted
from stages.outputs import whole_directory
from stages.splits import SPLITS
from stages.tasks import PRETRAINING

KNOWN = Path(".pipeline/drift/known")
MOST_CHARACTERS = 50_000_000  # of training text whose words count as seen; sorted by hash, they are a random choice
# Not words.parquet: under that name older versions kept words cut at their vowel signs, to which none of ours compare.
_WORDS = "whole_words.parquet"
_WORD = re.compile(r"[\w\x80-\U0010ffff]+")  # of parted text
Ids = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Known:
    """Sorted ids of each purpose, and the words of the training texts. Empty where nothing was kept yet."""

    ids: Mapping[str, Ids] = field(default_factory=dict)
    words: frozenset[str] = frozenset()


@dataclass
class Groups:
    """Test records, apart: those that are new, and those that were there before."""

    new: list[dict[str, str]] = field(default_factory=list)
    known: list[dict[str, str]] = field(default_factory=list)


def remember(prepared: Path, folder: Path = KNOWN) -> int:
    """Keeps what `prepared` holds in `folder`; returns the number of records. Raises PipelineError where it cannot."""
    records = 0
    with whole_directory(folder) as output:
        for purpose in _purposes(prepared):
            splits = [_ids(prepared / purpose / f"{split}.parquet") for split in SPLITS]
            ids = np.sort(np.concatenate(splits))
            np.save(output / f"{purpose}.npy", ids)
            records += len(ids)
        words = sorted(training_words(prepared / PRETRAINING / f"{SPLITS[0]}.parquet"))
        pq.write_table(pa.table({"word": pa.array(words, pa.string())}), output / _WORDS, compression="zstd")
    return records


def load_known(folder: Path = KNOWN) -> Known:
    """What was kept last; nothing where that was never done, no words where an older version kept it.

    Raises PipelineError where it cannot be read.
    """
    if not folder.is_dir():
        return Known()
    try:
        ids = {path.stem: np.load(path, mmap_mode="r", allow_pickle=False) for path in folder.glob("*.npy")}
        kept = pq.read_table(folder / _WORDS)["word"].to_pylist() if (folder / _WORDS).exists() else ()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise PipelineError(f"{folder} cannot be read ({error}): remove it; new data will not be told apart") from error
    return Known(ids, frozenset(kept))


def whole_words(text: str) -> list[str]:
    """The words of a text in order: letters, digits and underscores that stand together, with the marks on them."""
    return _WORD.findall(parted(text))


def training_words(texts: Path) -> set[str]:
    """The distinct words of the first MOST_CHARACTERS of the training texts."""
    found: set[str] = set()
    characters = 0
    for batch in _batches(texts, ["text"]):
        for text in batch["text"].to_pylist():
            found.update(whole_words(text))
            characters += len(text)
            if characters >= MOST_CHARACTERS:
                return found
    return found


def held_out(prepared: Path, purpose: str, known: Known, most: int) -> Groups:
    """The first `most` new and the first `most` known records of a purpose's test split (0: all).

    Where nothing was kept of the purpose, nothing is new. Raises PipelineError where the split cannot be read.
    """
    groups, before = Groups(), known.ids.get(purpose)
    for batch in _batches(prepared / purpose / f"{SPLITS[2]}.parquet"):
        for record in batch.to_pylist():
            group = groups.known if before is None or _is_in(before, record["id"]) else groups.new
            if not most or len(group) < most:
                group.append(record)
        if most and len(groups.new) >= most and len(groups.known) >= most:
            break
    return groups


def _is_in(ids: Ids, identity: str) -> bool:
    number = np.uint64(int(identity, 16))
    place = int(np.searchsorted(ids, number))
    return place < len(ids) and bool(ids[place] == number)


def _ids(path: Path) -> Ids:
    parts = [bytes.fromhex("".join(batch["id"].to_pylist())) for batch in _batches(path, ["id"])]
    return np.frombuffer(b"".join(parts), ">u8").astype(np.uint64)


def _purposes(prepared: Path) -> list[str]:
    found = sorted(path.parent.name for path in prepared.glob(f"*/{SPLITS[2]}.parquet"))
    if PRETRAINING not in found:
        raise PipelineError(f"{prepared / PRETRAINING} is not there: run the prepare stage first")
    return found


def _batches(path: Path, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    try:
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise PipelineError(f"{path} cannot be read ({error}): run the prepare stage again") from error
