"""Turn texts into memory-mapped token ids: data/prepared → data/tokens.

Every purpose and split becomes a token store, for a task two: its source and its target texts. Where an answer stands
in its source a third, `place`, says where, for models that point at it; where texts have classes `class` numbers them,
and labels.json names those that the training split has. A row group is read and encoded at a time, of much text on all
cores; shards have a fixed number of documents, so the result is the same with any number of workers. Some 20 million
characters a second and core, places far fewer; memory of a few row groups, and 70 MB a worker.
"""

import argparse
import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer
from tqdm import tqdm

from lightning_modules.errors import PipelineError
from lightning_modules.token_store import StoreMeta, token_dtype, write_meta, write_shard
from lightning_modules.windows import Offsets, context_begin, covering, tokens_before
from stages.console import progress, run_stage, stage_parser
from stages.encoding import Encoder, Ids
from stages.frugal import give_memory_back
from stages.outputs import whole_directory
from stages.parallel import cores, count, ordered_results
from stages.splits import KEYS, SPLITS
from stages.tasks import PRETRAINING, TASKS, Record

SHARD_DOCUMENTS = 1 << 20  # an open store holds two files a shard open: few and large
WORTH = 1 << 26  # bytes of parquet that a further worker is for: some 10 s of work
NUMBERS = {"span": "place", "class": "class"}  # by the kind of a task: its store of numbers that are no tokens
_ANY_NUMBER = 2**32


@dataclass(frozen=True)
class GroupJob:
    """One row group of a prepared parquet file; `side` is "" for pre-training, else the name of a task's store."""

    texts: Path
    row_group: int
    purpose: str
    side: str
    tokenizer: Path
    labels: tuple[str, ...] = ()  # of the classes, by number


@dataclass(frozen=True)
class Tokens:
    """The ids of a row group's documents, end to end, the length of each, and the bytes of their texts."""

    ids: Ids
    lengths: list[int]
    utf8_bytes: int


def tokenize(prepared: Path, tokenizer: Path, output: Path, workers: int) -> dict[str, int]:
    """Writes a store for every purpose, split and side below `output`; returns {store of texts: tokens}.

    Raises PipelineError where the prepared texts or the tokenizer cannot be read; nothing is written then.
    """
    vocab_size = _load(tokenizer).entries
    sha256 = hashlib.sha256(tokenizer.read_bytes()).hexdigest()
    stores = list(_stores(prepared))
    labels = {purpose: _labels(prepared, purpose) for _, purpose, side in stores if side == NUMBERS["class"]}
    jobs = [job for store in stores for job in _jobs(*store, tokenizer, labels.get(store[1], ()))]
    groups = Counter((job.texts, job.side) for job in jobs)
    workers = max(1, min(workers, len(jobs), 1 + sum(texts.stat().st_size for texts, _, _ in stores) // WORTH))
    totals: dict[str, int] = {}
    bar: tqdm[Any]
    with (
        whole_directory(output) as folder,
        progress(name="tokenize", unit="token") as bar,
        closing(ordered_results(encode_group, jobs, workers, bar)) as results,
    ):
        for texts, purpose, side in stores:
            store = Path(purpose, texts.stem, side)
            tokens = islice(results, groups[texts, side])
            of_texts = side not in NUMBERS.values()
            meta = _write_store(folder / store, tokens, vocab_size if of_texts else _ANY_NUMBER, sha256)
            if of_texts:
                totals[store.as_posix()] = meta.tokens
            elif side == NUMBERS["class"] and meta.tokens < meta.documents:
                told = f"{meta.documents - meta.tokens} of {meta.documents} records of {texts.stem} have labels"
                print(f"{purpose}: {told} that no training record has: a model that chooses a class gets them wrong")
        for purpose, names in labels.items():
            line = json.dumps(names, ensure_ascii=False) + "\n"
            (folder / purpose / "labels.json").write_text(line, encoding="utf-8")
    return totals


def _stores(prepared: Path) -> Iterator[tuple[Path, str, str]]:
    """(file, purpose, side) of each store to be written. Raises PipelineError for a purpose without its files."""
    purposes = [purpose for purpose in (PRETRAINING, *TASKS) if (prepared / purpose).is_dir()]
    if PRETRAINING not in purposes:
        raise PipelineError(f"{prepared / PRETRAINING} is not there: run the prepare stage first")
    for purpose in purposes:
        numbers = [NUMBERS[TASKS[purpose].kind]] if purpose in TASKS and TASKS[purpose].kind in NUMBERS else []
        for split in SPLITS:
            for side in ("",) if purpose == PRETRAINING else ("source", "target", *numbers):
                yield prepared / purpose / f"{split}.parquet", purpose, side


def _labels(prepared: Path, purpose: str) -> tuple[str, ...]:
    """All labels of the training split, sorted."""
    try:
        with pq.ParquetFile(prepared / purpose / f"{SPLITS[0]}.parquet") as file:
            found = {TASKS[purpose].target_text(row) for batch in file.iter_batches() for row in batch.to_pylist()}
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(prepared / purpose / f"{SPLITS[0]}.parquet", error) from None
    return tuple(sorted(found))


def _jobs(texts: Path, purpose: str, side: str, tokenizer: Path, labels: tuple[str, ...]) -> list[GroupJob]:
    try:
        row_groups = pq.read_metadata(texts).num_row_groups
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(texts, error) from None
    return [GroupJob(texts, number, purpose, side, tokenizer, labels) for number in range(row_groups)]


def _unreadable(texts: Path, error: Exception) -> PipelineError:
    return PipelineError(f"{texts} cannot be read ({error}): run the prepare stage again")


@lru_cache(maxsize=1)
def _load(path: Path) -> Encoder:
    give_memory_back()  # from here on, in this process
    return Encoder(_tokenizer(path))


@lru_cache(maxsize=1)
def _tokenizer(path: Path) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise PipelineError(f"{path} cannot be read ({error}): run the tokenizer stage first") from None
    tokenizer.encode_special_tokens = True  # a text that holds "</s>" means these letters, not the token
    return tokenizer


def encode_group(job: GroupJob) -> Tokens:
    """Encodes one row group, without special tokens."""
    with pq.ParquetFile(job.texts) as file:
        columns = [name for name in file.schema_arrow.names if name not in KEYS]
        records = file.read_row_group(job.row_group, columns, use_threads=False).to_pylist()
    if job.side in NUMBERS.values():
        rows = _places(records, job) if job.side == NUMBERS["span"] else _classes(records, job)
        return Tokens(np.fromiter(chain.from_iterable(rows), np.uint32), list(map(len, rows)), 0)
    text_of = _text_of(job.purpose, job.side)
    texts = [text_of(record) for record in records]
    ids, lengths = _load(job.tokenizer).encode(texts)
    count(len(ids))
    return Tokens(ids, lengths, sum(len(text.encode()) for text in texts))


def _text_of(purpose: str, side: str) -> Callable[[Record], str]:
    if purpose == PRETRAINING:
        return lambda record: record["text"]
    return TASKS[purpose].source_text if side == "source" else TASKS[purpose].target_text


def _places(records: list[Record], job: GroupJob) -> list[list[int]]:
    """Of each record the tokens before the context, the answer's first, its last (`text_pairs.SpanPairs`)."""
    task = TASKS[job.purpose]
    sources = [task.source_text(record) for record in records]
    encodings = _tokenizer(job.tokenizer).encode_batch(sources, add_special_tokens=False)
    starts = [record.get("answer_start") or "" for record in records]
    answers = [task.target_text(record) for record in records]
    rows = zip(sources, answers, starts, encodings, strict=True)
    return [place(source, answer, start, encoding.offsets) for source, answer, start, encoding in rows]


def place(source: str, answer: str, start: str, offsets: Offsets) -> list[int]:
    """Where an answer stands: the tokens before the context, the answer's first and last token.

    `start` is the answer's first character in the context, if the data says so; else its first place counts, as a word
    of its own if there is such a one. Without an answer there is the first number alone; none where it is not there.
    """
    begin = context_begin(source)
    context = tokens_before(offsets, begin)
    if not answer:
        return [context]
    said = begin + int(start) if start.isdecimal() else -1
    if said < 0 or not source.startswith(answer, said):
        said = _first_place(source, answer, begin)
    if said < 0:
        return []
    first, last = covering(offsets, said, said + len(answer))
    return [context, first, last] if first <= last else []


def _first_place(source: str, answer: str, begin: int) -> int:
    """From `begin` on: the first place where no letter, mark or digit touches it, else the first; -1: there is none."""
    at = first = source.find(answer, begin)
    while at >= 0:
        end = at + len(answer)
        if not (_of_word(source[at - 1 : at]) or _of_word(source[end : end + 1])):
            return at
        at = source.find(answer, at + 1)
    return first


def _of_word(character: str) -> bool:
    """Vowel signs and accents are marks; "" at the ends of a text is of no word."""
    return character.isalnum() or (character > "\x7f" and unicodedata.category(character)[0] == "M")


def _classes(records: list[Record], job: GroupJob) -> list[list[int]]:
    numbers = {label: number for number, label in enumerate(job.labels)}
    found = (numbers.get(TASKS[job.purpose].target_text(record)) for record in records)
    return [[] if number is None else [number] for number in found]


def _write_store(folder: Path, groups: Iterator[Tokens], vocab_size: int, tokenizer_sha256: str) -> StoreMeta:
    """Writes the groups' documents as shards of SHARD_DOCUMENTS."""
    folder.mkdir(parents=True)
    dtype, utf8_bytes, content = token_dtype(vocab_size), 0, hashlib.sha256()

    def documents() -> Iterator[Ids]:
        nonlocal utf8_bytes
        for group in groups:
            utf8_bytes += group.utf8_bytes
            content.update(group.ids.tobytes())
            content.update(np.asarray(group.lengths, dtype=np.int64).tobytes())
            yield from np.split(group.ids, np.cumsum(group.lengths))[:-1]  # the last is what is left: nothing

    shards = total_documents = total_tokens = 0
    left = documents()
    while (first := next(left, None)) is not None:
        shard = chain([first], islice(left, SHARD_DOCUMENTS - 1))
        written, tokens = write_shard(folder, shards, cast(Iterable[Sequence[int]], shard), dtype)
        shards, total_documents, total_tokens = shards + 1, total_documents + written, total_tokens + tokens
    counts = shards, total_documents, total_tokens, utf8_bytes
    meta = StoreMeta(dtype, vocab_size, tokenizer_sha256, *counts, content.hexdigest())
    write_meta(folder, meta)
    return meta


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
