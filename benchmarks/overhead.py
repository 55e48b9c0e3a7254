"""What Lightning costs: the trainer of stages/training.py beside a bare loop on the same model, optimiser and batches.

    python -m benchmarks.overhead            # some four minutes
    python -m benchmarks.overhead --profile  # where the time goes, function by function

One process; a step of the one, a step of the other, and so on, so that a busy moment of the machine meets both. Twice:
for the 6-layer decoder of `benchmarks.peers`, where the ratio counts, and for one so small that Lightning's
milliseconds stand out. They hardly depend on the model, so these, divided by a step of the first, say the same more
exactly.
"""

import argparse
import contextlib
import cProfile
import io
import pstats
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from benchmarks.peer_ours import bare_step, make, recipe, split, trainer
from benchmarks.peer_tools import WORKS, Work
from lightning_modules.allocator import keep_memory
from lightning_modules.datamodule import Batches, TextDataModule
from lightning_modules.module import TransformerModule

TELL_EVERY = 15  # steps between rows of the learning curve: of 1,500 steps
WARM_PAIRS = 5
SMALL = replace(WORKS["decoder"], d_model=16, heads=2, gated_d_ff=32, length=16, rows=2, vocab_size=512, tokens=2**15)
PAIRS = {"10 M": (WORKS["decoder"], 60), "small": (SMALL, 1500)}  # steps of each kind


class Alternate(pl.Callback):
    """After each of Lightning's steps makes a bare one, and times both: (Lightning's, bare) in seconds."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches
        self.seconds: list[tuple[float, float]] = []
        self._began = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lightning's first step begins."""
        self._began = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Lightning's step has ended; a bare one follows, and then Lightning goes on."""
        assert isinstance(pl_module, TransformerModule)
        ended = time.perf_counter()
        batch = self.batches.training_batch(trainer.global_step, 0, 1)
        bare_step(pl_module.model, batch, trainer.optimizers[0])
        now = time.perf_counter()
        self.seconds.append((ended - self._began, now - ended))
        self._began = time.perf_counter()


def fit(work: Work, steps: int, alternate: bool) -> list[tuple[float, float]]:
    """Trains; with `alternate`, returns the seconds of each pair of steps after the first few."""
    with (
        tempfile.TemporaryDirectory() as name,
        contextlib.redirect_stderr(io.StringIO()),
    ):  # draws the bar
        folder = Path(name)
        batches = split(work, folder)
        timing = Alternate(batches)
        fitting = trainer(folder / "checkpoints", steps, TELL_EVERY, [timing] if alternate else [])
        fitting.fit(TransformerModule(make(work), recipe(work, steps)), TextDataModule(batches, batches))  # type: ignore[arg-type]
    return timing.seconds[WARM_PAIRS:]


def profile(steps: int = 2000) -> str:
    """The functions that most of a small training's time is spent in, by their own time."""
    profiler = cProfile.Profile()
    profiler.runcall(fit, SMALL, steps, alternate=False)
    told = io.StringIO()
    pstats.Stats(profiler, stream=told).sort_stats("tottime").print_stats(45)
    return f"{steps} steps\n{told.getvalue()}"


def main() -> None:
    """Prints medians: milliseconds of a step, the difference, and by how much more Lightning's takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", action="store_true", help="no table, but the functions that take the time")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_memory()
    if arguments.profile:
        print(profile())
        return
    print(f"{'decoder':10}{'pairs':>8}{'Lightning':>12}{'bare':>10}{'more':>18}{'of the step':>14}")
    for name, (work, steps) in PAIRS.items():
        pairs = fit(work, steps + WARM_PAIRS, alternate=True)
        ours, bare = (1000 * statistics.median(column) for column in zip(*pairs, strict=True))
        more = [1000 * (a - b) for a, b in pairs]
        low, middle, high = statistics.quantiles(more, n=4)
        print(
            f"{name:10}{len(pairs):>8}{ours:>9.2f} ms{bare:>7.2f} ms{middle:>7.2f} ({low:.2f}–{high:.2f}) ms"
            f"{statistics.median(m / (1000 * b) for m, (_, b) in zip(more, pairs, strict=True)):>10.2%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
