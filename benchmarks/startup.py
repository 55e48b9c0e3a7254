"""What starting to read costs, however long the text: `python -m benchmarks.startup`. Under two minutes.

Stores of 1 MB and of 5 GB (of zeros that take no space, with a true index of its documents) are opened for rows of
1,024 tokens in fresh processes, in turns: from opening to the first batch, and to batch number 1,000,000, as when a
training goes on. Memory is what the process grows by, the pages of the store that it touches included.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

from lightning_modules.objectives import CausalLM
from lightning_modules.text_rows import TextRows
from lightning_modules.token_store import StoreMeta, TokenStore, write_meta
from lightning_modules.transformer.presets import preset

STORES = {"1 MB": 1 << 19, "5 GB": 5 << 29}  # tokens of two bytes
DOCUMENT = 500  # tokens in a document, on average
ROUNDS, ROWS, LENGTH, LATE = 3, 8, 1024, 1_000_000


def sparse_store(folder: Path, tokens: int) -> None:
    """Zeros, cut into documents of random length."""
    folder.mkdir()
    documents = tokens // DOCUMENT
    cuts = np.sort(np.random.default_rng(0).integers(0, tokens, documents - 1))
    np.concatenate([[0], cuts, [tokens]]).tofile(folder / "00000.idx")
    with (folder / "00000.bin").open("wb") as file:
        file.truncate(2 * tokens)
    write_meta(folder, StoreMeta("uint16", 8192, "", 1, documents, tokens, 1))


def start(folder: str, packing: str, number: int) -> None:
    """Prints the milliseconds to open the store, those to a batch from there, and the MB that both took."""
    config = preset("small-decoder", vocab_size=8192)
    before, began = psutil.Process().memory_info().rss, time.perf_counter()
    split = TextRows(TokenStore(Path(folder)), config, CausalLM(), LENGTH, ROWS, 1, 0, packing)
    opened = time.perf_counter()
    split.training_batch(number, 0, 1)
    done, after = time.perf_counter(), psutil.Process().memory_info().rss
    print((opened - began) * 1e3, (done - opened) * 1e3, (after - before) / 2**20)


def measured(folder: Path, packing: str, number: int) -> list[float]:
    """What `start` prints in a fresh process."""
    program = f"from benchmarks.startup import start; start({str(folder)!r}, {packing!r}, {number})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)  # noqa: S603
    return [float(number) for number in done.stdout.split()]


def main() -> None:
    """Prints the table."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    found: dict[tuple[str, str, int], list[list[float]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name, tokens in STORES.items():
            sparse_store(Path(temporary, name), tokens)
        for _ in range(ROUNDS):
            for name in STORES:
                for packing in ("joined", "best_fit"):
                    for number in (0, LATE):
                        taken = measured(Path(temporary, name), packing, number)
                        found.setdefault((name, packing, number), []).append(taken)
    print(f"median of {ROUNDS}: ms to open, ms to a batch of {ROWS} × {LENGTH}, MB")
    for (name, packing, number), rounds in found.items():
        opened, batch, memory = (statistics.median(column) for column in zip(*rounds, strict=True))
        print(f"{name}, {packing}, batch {number:,}: {opened:.1f} ms, {batch:.0f} ms, {memory:.0f} MB")


if __name__ == "__main__":
    main()
