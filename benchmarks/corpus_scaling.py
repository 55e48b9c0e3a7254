"""What preparing a corpus costs as it grows: `python -m benchmarks.corpus_scaling [--sizes 1 4 16]`, ten minutes.

The stages prepare, leakage, tokenizer and tokenize on the pre-training texts that `make demo` left here, and on 4 and
16 times as much, with params.yaml's settings. The first copy is the text itself. In the others every word stands for
another one that is about as frequent, as a seed says: so no copy is dropped as a duplicate of another, while words stay
as frequent, texts as long, and what is repeated within a copy as often. The translation task comes along unchanged:
its test texts are looked for.

Linux. Every stage has a process of its own. Told are seconds, and seconds of all processors together; memory that
cannot be given up (anonymous pages: mapped files can), sampled every 0.1 s, of the stage itself and of the largest of
its workers; the most bytes of disk that the stage added at any time, scratch included. Needs four times the text's
bytes of disk in --folder.
"""

import argparse
import json
import os
import random
import re
import resource
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import psutil
import pyarrow.parquet as pq
from ruamel.yaml import YAML

from stages.console import progress
from stages.parallel import cores, local_results

ROOT = Path(__file__).parents[1]
TEXTS = Path("data/prepared/pretraining/train.parquet")
STAGES = {
    "prepare": "prepare(params, Path('data/raw'), prepared, Path('reports/prepare.json'), cores())",
    "leakage": "measure(params, prepared, cores())",
    "tokenizer": "file = Path('data/tokenizer/tokenizer.json'); file.parent.mkdir(); "
    "train_tokenizer(prepared / 'pretraining/train.parquet', params.tokenizer.vocab_size).save(str(file))",
    "tokenize": "tokenize(prepared, Path('data/tokenizer/tokenizer.json'), Path('data/tokens'), cores())",
}
IMPORTS = (
    "from pathlib import Path; from stages.parallel import cores; from stages.params import load_params; "
    "from stages.prepare import prepare; from stages.leakage import measure; from stages.tokenize import tokenize; "
    "from stages.tokenizer import train_tokenizer; params, prepared = load_params(), Path('data/prepared'); "
)
_FILES = 8  # of a copy: jobs for as many workers
_ALIKE = 64  # words next to one another in the order of frequency, which change places


@dataclass(frozen=True)
class Copy:
    """One copy of the texts, to be written below `folder`."""

    number: int
    texts: Path
    folder: Path


@dataclass
class Cost:
    """What a stage took at one size: seconds, bytes."""

    seconds: float
    processor_seconds: float
    parent: int = 0
    worker: int = 0
    disk: int = 0


def write_copy(job: Copy) -> int:
    """Writes a copy as jsonl files; returns its characters."""
    texts = pq.read_table(job.texts, columns=["text"])["text"].to_pylist()
    if job.number:
        other = other_words(texts, job.number)
        texts = [" ".join([other[word] for word in text.split(" ")]) for text in texts]
    for part in range(_FILES):
        lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts[part::_FILES])
        with (job.folder / f"{job.number:03d}-{part}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(lines)
    return sum(map(len, texts))


def other_words(texts: list[str], seed: int) -> dict[str, str]:
    """For every word one of those that are about as frequent, each for one."""
    counted = Counter(word for text in texts for word in text.split(" "))
    words = sorted(counted, key=lambda word: (-counted[word], word))
    draw, found = random.Random(seed), dict[str, str]()  # noqa: S311 - nothing secret
    for first in range(0, len(words), _ALIKE):
        alike = words[first : first + _ALIKE]
        found |= zip(alike, draw.sample(alike, len(alike)), strict=True)
    return found


def make_world(folder: Path, copies: Path, size: int) -> None:
    """A folder in which the stages find so many copies, and params.yaml."""
    raw = folder / "data/raw/texts"
    raw.mkdir(parents=True)
    for copy in sorted(copies.glob("*.jsonl")):
        if int(copy.name.split("-")[0]) < size:
            (raw / copy.name).hardlink_to(copy)
    (folder / "data/raw/homeassistant").symlink_to(Path("data/raw/homeassistant").resolve(), target_is_directory=True)
    params = YAML(typ="safe").load(Path("params.yaml").read_text(encoding="utf-8"))
    pretraining = [{"source": "texts", "reader": "table", "columns": {"text": "text"}}]
    params["data"] = {"pretraining": pretraining, "translation": params["data"]["translation"]}
    params["tasks"] = {"translation": params["tasks"]["translation"]}
    params["sources"]["local"] = {"texts": {"path": "texts"}}
    params["leakage"]["max_share"] = 1.0
    with (folder / "params.yaml").open("w", encoding="utf-8") as file:
        YAML(typ="safe").dump(params, file)


def run(stage: str, folder: Path) -> Cost:
    """Runs a stage in a process of its own and watches what it takes."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "true"}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with (folder / f"{stage}.log").open("wb") as log:
        process = psutil.Popen([sys.executable, "-c", IMPORTS + STAGES[stage]], cwd=folder, env=environment, stderr=log)
        cost, stop = Cost(0, 0), threading.Event()
        watcher = threading.Thread(target=watch, args=(process, folder / "data", cost, stop))
        watcher.start()
        status = process.wait()
    cost.seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cost.processor_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    stop.set()
    watcher.join()
    if status:
        sys.exit(f"{stage} failed: see {folder / stage}.log")
    return cost


def watch(process: psutil.Popen, data: Path, cost: Cost, stop: threading.Event) -> None:
    """Keeps the most of what was seen in `cost`."""
    at_first = used(data)
    while not stop.wait(0.1):
        with suppress(psutil.NoSuchProcess):
            cost.parent = max(cost.parent, anonymous(process.pid))
            cost.worker = max([cost.worker, *(anonymous(child.pid) for child in process.children(recursive=True))])
        cost.disk = max(cost.disk, used(data) - at_first)


def anonymous(pid: int) -> int:
    """Bytes of a process that are no file's; 0 when it has ended."""
    with suppress(OSError):
        if found := re.search(r"RssAnon:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text()):
            return 1024 * int(found[1])
    return 0


def used(folder: Path) -> int:
    """Bytes below a folder; links are not followed."""
    return sum(map(size_of, (Path(root, name) for root, _, names in os.walk(folder) for name in names)))


def size_of(file: Path) -> int:
    """Bytes of a file, 0 where it is gone."""
    try:
        return file.stat(follow_symlinks=False).st_size
    except OSError:
        return 0


def table(found: dict[int, dict[str, Cost]], characters: int) -> Iterator[str]:
    """A line a stage and size, with how much more it took than at the size before, and how many times the text."""
    yield "| size | stage | M characters | s | processor s | M a processor s | itself MB | worker MB | disk MB |"
    yield "| ---: | --- " + "| ---: " * 7 + "|"
    for size, costs in found.items():
        for stage, cost in costs.items():
            million = characters * size / 1e6
            speed = million / cost.processor_seconds
            memory = f"{cost.parent / 1e6:.0f} | {cost.worker / 1e6:.0f} | {cost.disk / 1e6:.0f}"
            row = f"{million:.1f} | {cost.seconds:.1f} | {cost.processor_seconds:.1f} | {speed:.2f}"
            yield f"| {size} | {stage} | {row} | {memory} |"
    for small, large in pairwise(found):
        took = {stage: cost.processor_seconds for stage, cost in found[large].items()}
        ratios = {stage: seconds / found[small][stage].processor_seconds for stage, seconds in took.items()}
        grown = ", ".join(f"{stage} {ratio:.2f}" for stage, ratio in ratios.items())
        yield f"{large / small:g} times the text took so many times the processor seconds: {grown}"


def main() -> None:
    """Makes the texts, runs the stages at each size, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 4, 16], help="times the text of params.yaml")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where to work")
    arguments = parser.parse_args()
    if not TEXTS.exists():
        sys.exit(f"{TEXTS} is not there: run `make demo` first")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        copies = folder / "copies"
        copies.mkdir()
        jobs = [Copy(number, TEXTS.resolve(), copies) for number in range(max(arguments.sizes))]
        with progress(name="copies", unit="copy") as bar:
            characters = next(iter(list(local_results(write_copy, jobs, cores(), bar))))
        found: dict[int, dict[str, Cost]] = {}
        for size in sorted(arguments.sizes):
            world = folder / f"world-{size}"
            make_world(world, copies, size)
            found[size] = {stage: run(stage, world) for stage in STAGES}
        print("\n".join(table(found, characters)))


if __name__ == "__main__":
    main()
