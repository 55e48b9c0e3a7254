"""Turn texts into memory-mapped token ids: data/prepared → data/tokens.

Every purpose and split becomes a token store, for a task two: its source and its target texts. One worker a core reads
a row group at a time and sends its ids back; shards have a fixed number of documents, so the result is the same with
any number of workers. Millions of characters a second and core; memory of a few row groups.
"""

import argparse
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer
from tqdm import tqdm

from lightning_modules.errors import PipelineError
from lightning_modules.token_store import StoreMeta, token_dtype, write_meta, write_shard
from stages.console import progress, run_stage, stage_parser
from stages.encoding import Encoder
from stages.outputs import whole_directory
from stages.parallel import cores, count, ordered_results
from stages.params_data import PRETRAINING
from stages.splits import SPLITS
from stages.tasks import TASKS, Record

SHARD_DOCUMENTS = 1 << 20  # an open store holds two files a shard open: few and large
Ids = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class GroupJob:
    """One row group of a prepared parquet file; `side` is "" for pre-training, else "source" or "target"."""

    texts: Path
    row_group: int
    purpose: str
    side: str
    tokenizer: Path


@dataclass(frozen=True)
class Tokens:
    """The ids of a row group's documents, end to end, the length of each, and the bytes of their texts."""

    ids: Ids
    lengths: list[int]
    utf8_bytes: int


def tokenize(prepared: Path, tokenizer: Path, output: Path, workers: int) -> dict[str, int]:
    """Writes a store for every purpose, split and side below `output`; returns {store: tokens}.

    Raises PipelineError where the prepared texts or the tokenizer cannot be read; nothing is written then.
    """
    vocab_size = _load(tokenizer).entries
    sha256 = hashlib.sha256(tokenizer.read_bytes()).hexdigest()
    stores = list(_stores(prepared))
    jobs = [job for store in stores for job in _jobs(*store, tokenizer)]
    groups = Counter((job.texts, job.side) for job in jobs)
    totals: dict[str, int] = {}
    bar: tqdm[Any]
    with (
        whole_directory(output) as folder,
        progress(name="tokenize", unit="token") as bar,
        closing(ordered_results(encode_group, jobs, max(1, min(workers, len(jobs))), bar)) as results,
    ):
        for texts, purpose, side in stores:
            store = Path(purpose, texts.stem, side)
            tokens = islice(results, groups[texts, side])
            totals[store.as_posix()] = _write_store(folder / store, tokens, vocab_size, sha256)
    return totals


def _stores(prepared: Path) -> Iterator[tuple[Path, str, str]]:
    """(file, purpose, side) of each store to be written. Raises PipelineError for a purpose without its files."""
    purposes = [purpose for purpose in (PRETRAINING, *TASKS) if (prepared / purpose).is_dir()]
    if PRETRAINING not in purposes:
        raise PipelineError(f"{prepared / PRETRAINING} is not there: run the prepare stage first")
    for purpose in purposes:
        for split in SPLITS:
            for side in ("",) if purpose == PRETRAINING else ("source", "target"):
                yield prepared / purpose / f"{split}.parquet", purpose, side


def _jobs(texts: Path, purpose: str, side: str, tokenizer: Path) -> list[GroupJob]:
    try:
        row_groups = pq.read_metadata(texts).num_row_groups
    except (OSError, pa.ArrowException) as error:
        raise PipelineError(f"{texts} cannot be read ({error}): run the prepare stage again") from None
    return [GroupJob(texts, number, purpose, side, tokenizer) for number in range(row_groups)]


@lru_cache(maxsize=1)
def _load(path: Path) -> Encoder:
    try:
        return Encoder(Tokenizer.from_file(str(path)))
    except Exception as error:  # the library raises plain Exception
        raise PipelineError(f"{path} cannot be read ({error}): run the tokenizer stage first") from None


def encode_group(job: GroupJob) -> Tokens:
    """Encodes one row group, without special tokens."""
    with pq.ParquetFile(job.texts) as file:
        records = file.read_row_group(job.row_group).to_pylist()
    text_of = _text_of(job.purpose, job.side)
    texts = [text_of(record) for record in records]
    ids, lengths = _load(job.tokenizer).encode(texts)
    count(len(ids))
    return Tokens(ids, lengths, sum(len(text.encode()) for text in texts))


def _text_of(purpose: str, side: str) -> Callable[[Record], str]:
    if purpose == PRETRAINING:
        return lambda record: record["text"]
    return TASKS[purpose].source_text if side == "source" else TASKS[purpose].target_text


def _write_store(folder: Path, groups: Iterator[Tokens], vocab_size: int, tokenizer_sha256: str) -> int:
    """Writes the groups' documents as shards of SHARD_DOCUMENTS; returns the number of tokens."""
    folder.mkdir(parents=True)
    dtype, utf8_bytes = token_dtype(vocab_size), 0

    def documents() -> Iterator[Ids]:
        nonlocal utf8_bytes
        for group in groups:
            utf8_bytes += group.utf8_bytes
            yield from np.split(group.ids, np.cumsum(group.lengths))[:-1]  # the last is what is left: nothing

    shards = total_documents = total_tokens = 0
    left = documents()
    while (first := next(left, None)) is not None:
        shard = chain([first], islice(left, SHARD_DOCUMENTS - 1))
        written, tokens = write_shard(folder, shards, cast(Iterable[Sequence[int]], shard), dtype)
        shards, total_documents, total_tokens = shards + 1, total_documents + written, total_tokens + tokens
    meta = StoreMeta(dtype, vocab_size, tokenizer_sha256, shards, total_documents, total_tokens, utf8_bytes)
    write_meta(folder, meta)
    return total_tokens


def main(_: argparse.Namespace) -> None:
    """Tokenizes all that is prepared."""
    from stages.tracking import stage_run

    prepared, tokenizer = Path("data/prepared"), Path("data/tokenizer/tokenizer.json")
    with stage_run("tokenize", params={}, inputs=[prepared, tokenizer.parent]) as run:
        totals = tokenize(prepared, tokenizer, Path("data/tokens"), cores())
        run.log_metrics({f"tokens/{store}": float(tokens) for store, tokens in totals.items()})
        print(f"tokenize: {sum(totals.values()):,} tokens in {len(totals)} stores")


if __name__ == "__main__":
    run_stage(main, stage_parser(__doc__))
