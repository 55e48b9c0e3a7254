"""What tokenizing to disk costs: `python -m benchmarks.tokenizing`. Two cores, some three minutes, 1 GB of disk.

The tokenize stage's code, which may use two workers, against `datasets.map` of two processes with the same tokenizer,
bare and as `transformers` wraps it. They take turns, each in a fresh process tree whose memory is sampled as the sum of
proportional set sizes (Linux); what the imports alone take is told, too. The texts and the tokenizer are those of
params.yaml, which `make demo` leaves here; `--times 4` takes the texts four times, and what memory grows with shows.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from stages.splits import ROW_GROUP, SPLITS

ROUNDS = 3


def tokenize_table(folder: Path, times: int) -> None:
    """Prints speed and peak memory of the stage and of `datasets.map`."""
    characters = prepare_texts(folder, times)
    results: dict[str, list[tuple[float, float]]] = {
        "imports": [],
        "tokenize_stage": [],
        "datasets_map": [],
        "datasets_map_transformers": [],
    }
    for turn in range(ROUNDS):
        for name, found in results.items():
            output = folder / f"{name}-{turn}"
            found.append(tokenizing(name, folder, output))
            shutil.rmtree(output, ignore_errors=True)
    print(f"tokenizing {characters / 1e6:.0f} M characters, two processes (median of {ROUNDS})")
    for name, found in results.items():
        took, memory = (statistics.median(column) for column in zip(*found, strict=True))
        speed = f"{took:.1f} s, {characters / took / 1e6:.2f} M characters a second, " if took else ""
        print(f"{name}: {speed}{memory:.0f} MB at most")


def prepare_texts(folder: Path, times: int) -> int:
    """Writes the training text of this project's run, so many times, and its tokenizer; returns the characters."""
    texts, tokenizer = Path("data/prepared/pretraining/train.parquet"), Path("data/tokenizer/tokenizer.json")
    if not (texts.exists() and tokenizer.exists()):
        sys.exit(f"{texts} or {tokenizer} is not there: run `make demo` first")
    target = folder / "prepared" / "pretraining"
    target.mkdir(parents=True)
    shutil.copyfile(tokenizer, folder / "tokenizer.json")
    table = pa.concat_tables([pq.read_table(texts, columns=["text"])] * times)
    for split in SPLITS:
        part = table if split == "train" else table.slice(0, 0)
        pq.write_table(part, target / f"{split}.parquet", row_group_size=ROW_GROUP, compression="zstd")
    return int(pc.sum(pc.utf8_length(table["text"])).as_py())


def tokenizing(name: str, folder: Path, output: Path) -> tuple[float, float]:
    """(Seconds without imports, most memory of all its processes in MB) of one way, run on its own."""
    # Not by `-m`: the stage's workers would import this file again.
    program = f"from benchmarks.tokenizing import {name}; {name}({str(folder)!r}, {str(output)!r})"
    command = [sys.executable, "-c", program]
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    with subprocess.Popen(  # noqa: S603 (this file itself)
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as process:
        peak, stop = [0.0], threading.Event()
        sampler = threading.Thread(target=watch, args=(psutil.Process(process.pid), peak, stop))
        sampler.start()
        told, _ = process.communicate()
        stop.set()
        sampler.join()
    return float(told.split()[-1]), peak[0]


def watch(root: psutil.Process, peak: list[float], stop: threading.Event) -> None:
    """Samples the memory of a process and all below it."""
    while not stop.wait(0.05):
        peak[0] = max(peak[0], sum(resident(root)) / 2**20)


def resident(root: psutil.Process) -> Iterator[int]:
    """Memory of a process and of all below it, in bytes: pages that several share are divided among them."""
    try:
        tree = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in tree:
        try:
            yield process.memory_full_info().pss
        except psutil.NoSuchProcess:
            continue


def imports(folder: str, output: str) -> None:
    """What one process of either takes before it does anything: numpy, Arrow and the tokenizer's library."""
    time.sleep(0.5)  # to be seen
    print(0.0)


def tokenize_stage(folder: str, output: str) -> None:
    """The stage's own code; prints the seconds."""
    from stages.tokenize import tokenize

    began = time.perf_counter()
    tokenize(Path(folder, "prepared"), Path(folder, "tokenizer.json"), Path(output), workers=2)
    print(time.perf_counter() - began)


def datasets_map(folder: str, output: str) -> None:
    """The same ids into an Arrow table; prints the seconds."""
    tokenizer = Tokenizer.from_file(str(Path(folder, "tokenizer.json")))

    def encode(records: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        encodings = tokenizer.encode_batch_fast(records["text"], add_special_tokens=False)
        return {"input_ids": [encoding.ids for encoding in encodings]}

    _map(folder, output, encode)


def datasets_map_transformers(folder: str, output: str) -> None:
    """As tutorials do it: with the tokenizer as `transformers` wraps it; prints the seconds."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(Path(folder, "tokenizer.json")))

    def encode(records: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        return {"input_ids": tokenizer(records["text"], add_special_tokens=False)["input_ids"]}

    _map(folder, output, encode)


def _map(folder: str, output: str, encode: Callable[[dict[str, list[str]]], dict[str, list[list[int]]]]) -> None:
    import datasets

    file, began = str(Path(folder, "prepared/pretraining/train.parquet")), time.perf_counter()
    texts = datasets.Dataset.from_parquet(file, cache_dir=output)
    features = datasets.Features({"input_ids": datasets.List(datasets.Value("uint16"))})
    texts.map(encode, batched=True, num_proc=2, remove_columns=["text"], features=features)
    print(time.perf_counter() - began)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=1, help="how many times the texts are taken")
    times = parser.parse_args().times
    with tempfile.TemporaryDirectory() as folder:
        tokenize_table(Path(folder), times)


if __name__ == "__main__":
    main()
