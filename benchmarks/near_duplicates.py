"""Near-duplicates found here, by datasketch and by rensa in the same texts: how many, how surely, how fast.

    python -m benchmarks.near_duplicates [--texts 30000]

All keep a text unless it is similar to one that they kept before, by word 5-grams and 128 hashes. Prepares data/raw
again without looking for near-duplicates, into a temporary folder, and takes the first texts of it, a random choice. A
minute for 30,000 texts. rensa is skipped where it is missing (pip install rensa).
"""

import argparse
import importlib
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasketch import MinHash, MinHashLSH  # type: ignore[import-untyped]

from stages.near_duplicates import HASHES, WORDS, nearest_kept, similarity
from stages.parallel import cores
from stages.params import load_params
from stages.prepare import prepare
from stages.splits import ROW_GROUP, SPLITS
from stages.tasks import PRETRAINING

_SEED = 1
Nearest = dict[int, int]  # a text that goes → the earlier one that stays


def write_texts(folder: Path, most: int) -> Path:
    """The first `most` pre-training texts (0: all), near-duplicates among them, as one file."""
    params = load_params()
    everything = params.prepare.model_copy(update={"near_duplicates": 0.0, "decontaminate": False, "weights": {}})
    params = params.model_copy(update={"prepare": everything})
    prepare(params, Path("data/raw"), folder / "prepared", folder / "report.json", cores())
    tables = [pq.read_table(folder / "prepared" / PRETRAINING / f"{split}.parquet") for split in SPLITS]
    table = pa.concat_tables(tables).sort_by("id")
    pq.write_table(table[:most] if most else table, folder / "texts.parquet", row_group_size=ROW_GROUP)
    return folder / "texts.parquet"


def ours(file: Path, threshold: float, workers: int) -> Nearest:
    """What prepare does."""
    kept = nearest_kept([file], threshold, workers, file.parent).tolist()
    return {late: early for late, early in enumerate(kept) if early >= 0}


def sets(file: Path) -> Iterator[list[str]]:
    """Each text's n-grams; a shorter text as a whole."""
    for text in pq.read_table(file)["text"].to_pylist():
        words = re.findall(r"[^\W_]+", text.lower())
        yield [" ".join(words[n : n + WORDS]) for n in range(max(1, len(words) - WORDS + 1))]


def by_datasketch(file: Path, threshold: float) -> Nearest:
    """MinHashLSH's candidates, by their estimated similarity."""
    index, found = MinHashLSH(threshold, num_perm=HASHES), {}
    hashes = MinHash.generator(([gram.encode() for gram in grams] for grams in sets(file)), num_perm=HASHES)
    signatures: dict[int, Any] = {}
    for number, signature in enumerate(hashes):
        near = [other for other in sorted(index.query(signature)) if signatures[other].jaccard(signature) >= threshold]
        if near:
            found[number] = near[0]
        else:
            index.insert(number, signature)
            signatures[number] = signature
    return found


def by_rensa(file: Path, threshold: float) -> Nearest:
    """Its deduplicator."""
    rensa = importlib.import_module("rensa")
    index, found = rensa.RMinHashDeduplicator(threshold, HASHES, True, num_bands=HASHES // 8, seed=_SEED), {}
    for number, grams in enumerate(sets(file)):
        signature = rensa.RMinHash(HASHES, _SEED)
        signature.update(grams)
        near = sorted(map(int, index.get_duplicates(signature)))
        if near:
            found[number] = near[0]
        else:
            index.add(str(number), signature)
    return found


def processor_seconds() -> float:
    """Of this process and of those that it started and that have ended."""
    return sum(os.times()[:4])


def main(arguments: argparse.Namespace) -> None:
    """Prints a line a way: time, texts that go, how many of them rightly, how many of those that should."""
    threshold = load_params().prepare.near_duplicates
    ways: dict[str, Callable[[Path], Nearest]] = {
        "here, 1 process": lambda file: ours(file, threshold, 1),
        f"here, {cores()} processes": lambda file: ours(file, threshold, cores()),
        "datasketch": lambda file: by_datasketch(file, threshold),
        "rensa": lambda file: by_rensa(file, threshold),
    }
    with tempfile.TemporaryDirectory() as folder:
        file = write_texts(Path(folder), arguments.texts)
        texts = pq.read_table(file)["text"].to_pylist()
        found: dict[str, Nearest] = {}
        seconds: dict[str, tuple[float, float]] = {}
        for name, way in ways.items():
            start, processor = time.perf_counter(), processor_seconds()
            try:
                found[name] = way(file)
            except ModuleNotFoundError as error:
                print(f"{name} skipped: {error}")
            seconds[name] = time.perf_counter() - start, processor_seconds() - processor
    rightly = {
        name: {late for late, early in pairs.items() if similarity(texts[early], texts[late]) >= threshold}
        for name, pairs in found.items()
    }
    known = set().union(*rightly.values())
    print(f"{len(texts):,} texts, {sum(map(len, texts)):,} characters; {len(known):,} that should go are known")
    print(
        f"{'':<20} {'seconds':>8} {'processor s':>12} {'go':>7} {'at least ' + str(threshold):>13} {'of the known':>13}"
    )
    for name, pairs in found.items():
        share = len(rightly[name]) / max(1, len(pairs)), len(known & pairs.keys()) / max(1, len(known))
        wall, processor = seconds[name]
        times = f"{wall:>8.1f} {processor:>12.1f}"
        print(f"{name:<20} {times} {len(pairs):>7,} {share[0]:>13.1%} {share[1]:>13.1%}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=30_000, help="0: all")
    main(parser.parse_args())
