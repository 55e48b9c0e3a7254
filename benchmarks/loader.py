"""What reading and packing tokens cost: `python -m benchmarks.loader`. One process, under a minute, 100 MB of disk.

Rows: batches in training's order, against random rows of an Arrow table of the `datasets` library that holds rows of
that length already. All end with the ids as a torch tensor of int64; ways take turns. "A batch" is the median, "in all"
counts what is done now and then for many batches, too: reading, packing and shuffling a group of windows, where the
table was packed and its rows were shuffled before. Of a table:

- arrow: the batch as Arrow has it, `with_format("arrow")`, made into an array by hand: the fastest way found;
- numpy: `with_format("numpy")`; with "torch", or through a mapping of indices, it takes some percent longer;
- plain: lists of numbers, as a table gives them if not told otherwise;
- Trainer: what `transformers.Trainer` does: torch's DataLoader over plain rows, `default_data_collator`.

Packing: documents cut though a row could hold them, and padding. Texts are documents of random ids and lognormal
lengths.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch.utils.data import DataLoader
from transformers import default_data_collator

from lightning_modules.objectives import CausalLM
from lightning_modules.packing import Pieces, best_fit, cut_at_rows
from lightning_modules.text_rows import TextRows
from lightning_modules.token_store import StoreMeta, TokenStore, write_meta
from lightning_modules.transformer.config import TransformerConfig

Ids = npt.NDArray[np.int64]
Batch = Callable[[int], Any]  # number → what is read
VOCABULARY, TOKENS = 8192, 8 << 20
SHAPES = [(16, 128), (64, 1024)]  # rows of a batch, tokens of a row
LENGTHS = {"long documents": (6.0, 1.0), "sentences": (3.0, 0.6)}  # of documents: mean and deviation of the logarithm
CONFIG = TransformerConfig(
    architecture="decoder",
    vocab_size=VOCABULARY,
    d_model=32,
    heads=1,
    d_ff=32,
    encoder_layers=1,
    decoder_layers=1,
    max_length=8,
)
ROUNDS = 5


def lengths(kind: str, tokens: int) -> Ids:
    """Lengths of documents, </s> counted in, `tokens` in all."""
    sizes = np.random.default_rng(0).lognormal(*LENGTHS[kind], size=tokens // 8).astype(np.int64) + 2
    ends = np.cumsum(sizes)
    return np.diff(np.append(ends[ends < tokens - 1], tokens), prepend=0)


def random_store(folder: Path, kind: str) -> TokenStore:
    """Documents of random ids."""
    folder.mkdir()
    sizes, rng = lengths(kind, TOKENS) - 1, np.random.default_rng(0)
    np.concatenate([[0], np.cumsum(sizes)]).tofile(folder / "00000.idx")
    rng.integers(5, VOCABULARY, sizes.sum()).astype(np.uint16).tofile(folder / "00000.bin")
    write_meta(folder, StoreMeta("uint16", VOCABULARY, "", 1, len(sizes), int(sizes.sum()), 1))
    return TokenStore(folder)


def rows_table(folder: Path) -> None:
    """Prints what a batch takes in each way of reading, and a token in all; and the longest wait for a batch."""
    print(f"rows: µs a batch; million tokens a second of the processor's time in all, median of {ROUNDS}; longest wait")
    for kind in LENGTHS:
        store = random_store(folder / kind, kind)
        for rows, length in SHAPES:
            ways = reading_ways(store, folder / f"{kind}-{length}.arrow", rows, length)
            waits: dict[str, list[float]] = {name: [] for name in ways}
            speeds: dict[str, list[float]] = {name: [] for name in ways}
            for turn in range(ROUNDS):
                for name, (batch, count) in ways.items():
                    began = time.process_time()
                    waits[name] += [seconds(batch, number) for number in range(turn * count, (turn + 1) * count)]
                    speeds[name].append(count * rows * length / (time.process_time() - began))
            print(f"{kind}, {rows} × {length}: " + "; ".join(told(name, waits[name], speeds[name]) for name in ways))


def reading_ways(store: TokenStore, arrow: Path, rows: int, length: int) -> dict[str, tuple[Batch, int]]:
    """{name: (what reads batch number n, batches to read in a turn)}."""
    ids_N, _ = store.joined(0, TOKENS // length * length, CONFIG.eos_id)
    table = arrow_table(arrow, ids_N.reshape(-1, length))
    batches = len(table) // rows
    shuffled_NB = np.random.default_rng(1).permutation(len(table))[: batches * rows].reshape(batches, rows)

    def from_store(packing: str) -> Batch:
        split = TextRows(store, CONFIG, CausalLM(), length, rows, 1, 0, packing)
        return lambda number: split.training_batch(number, 0, 1)

    def from_table(form: str | None, array: Callable[[Any], npt.NDArray[Any]]) -> Batch:
        formed = table.with_format(form)
        return lambda n: torch.from_numpy(
            array(formed[shuffled_NB[n % batches]]["input_ids"]).astype(np.int64).reshape(rows, length)
        )

    fast, slow = batches // 8, batches // 40  # so many that none takes far more of the time than another
    return {
        "joined": (from_store("joined"), batches),
        "best_fit": (from_store("best_fit"), batches),
        "arrow": (from_table("arrow", lambda column: column.combine_chunks().flatten().to_numpy()), fast),
        "numpy": (from_table("numpy", np.asarray), fast),
        "plain": (from_table(None, np.asarray), slow),
        "Trainer": (as_trainer_reads(table, rows), slow),
    }


def as_trainer_reads(table: datasets.Dataset, rows: int) -> Batch:
    """Batches of rows in random order, one after the other."""
    batches = iter(DataLoader(table, rows, shuffle=True, drop_last=True, collate_fn=default_data_collator))
    next(batches)  # which puts the rows of an epoch into order
    return lambda _: next(batches)["input_ids"]


def seconds(batch: Batch, number: int) -> float:
    """How long reading a batch took."""
    began = time.perf_counter()
    batch(number)
    return time.perf_counter() - began


def told(name: str, waits: list[float], speeds: list[float]) -> str:
    """One way's numbers."""
    batch, speed = statistics.median(waits) * 1e6, statistics.median(speeds) / 1e6
    return f"{name} {batch:.1f} µs, {speed:.1f} M/s, {max(waits) * 1e3:.0f} ms"


def arrow_table(path: Path, ids_RL: npt.NDArray[np.uint16]) -> datasets.Dataset:
    """Rows as a memory-mapped Arrow table, as `datasets` keeps its own."""
    values = pa.array(ids_RL.ravel())
    lists = pa.ListArray.from_arrays(np.arange(0, ids_RL.size + 1, ids_RL.shape[1], dtype=np.int32), values)
    table = pa.table({"input_ids": lists})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=1000)
    return datasets.Dataset(datasets.table.MemoryMappedTable.from_file(str(path)))


def first_fit(sizes_N: Ids, length: int) -> tuple[int, int]:
    """(Pieces, rows) where each document, or row of a longer one, goes into the first row that has room, uncut."""
    whole_N, rests_N = np.divmod(sizes_N, length)
    rooms_R, rows = np.zeros(len(sizes_N), np.int64), 0
    for size in rests_N[rests_N > 0].tolist():
        fitting = rooms_R[: rows + 1] >= size
        row = int(fitting.argmax()) if fitting.any() else rows
        if row == rows:
            rooms_R[row], rows = length, rows + 1
        rooms_R[row] -= size
    return int(whole_N.sum() + (rests_N > 0).sum()), rows + int(whole_N.sum())


def packing_table() -> None:
    """Prints, of the documents that a row could hold, the share that is cut; and the share of padding."""
    print("\npacking: share of the documents no longer than a row that are cut; padding")
    for kind in LENGTHS:
        for _, length in SHAPES:
            sizes_N = lengths(kind, 1 << 20)
            ends_N = np.cumsum(sizes_N)
            _, rows = first_fit(sizes_N, length)
            shares = {"joined": needless(cut_at_rows, ends_N, length), "best_fit": needless(best_fit, ends_N, length)}
            of_packings = ", ".join(f"{name} {share:.1%} cut, no padding" for name, share in shares.items())
            padding = 1 - sizes_N.sum() / (rows * length)
            print(f"{kind}, rows of {length}: {of_packings}, first fit none cut, {padding:.2%} padding")


def needless(pack: Callable[[Ids, int], Pieces], ends_N: Ids, length: int) -> float:
    """Of the documents that a row could hold, the share that is cut."""
    document_P = np.searchsorted(ends_N, pack(ends_N, length).starts_P, side="right")
    fits_N = np.diff(ends_N, prepend=0) <= length
    return float((np.bincount(document_P)[fits_N] > 1).mean())


def main() -> None:
    """Prints the tables."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows_table(Path(folder))
    packing_table()


if __name__ == "__main__":
    main()
