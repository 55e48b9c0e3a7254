"""Training speed on a GPU, compiled or not, beside a loop in nanoGPT's style: `python -m benchmarks.gpu`.

Some five minutes on an H200, three of them compiling. Everyone trains in bf16 by autocast, with fused AdamW, gradients
clipped to norm 1, on rows of as many tokens, in one process, and they take turns: a busy moment meets all. The
vocabulary is a multiple of 64, as nanoGPT pads it. The table gives medians of tokens/s, and the share of the peak:
FLOPs by `step_flops`, which counts attention whole (as PaLM and nanoGPT do), against a product of two matrices of
8,192 × 8,192 in bf16, measured in the same process. Memory is the most that was allocated; beside it what
`stages.estimate` would tell, which knows nothing of compiled graphs.

    python -m benchmarks.gpu --only nanoGPT "GPT-2"   # words in names
    python -m benchmarks.gpu --profile "Llama"        # kernels that take the time, of the first whose name has the word
"""

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities import move_data_to_device
from torch import Tensor, nn

from benchmarks.peer_ours import NEVER, bare_step, config, make, real_tokens, recipe, split, trainer
from benchmarks.peer_tools import GRADIENT_CLIP, Work
from benchmarks.peer_torch import GPT, crops, cross_entropy
from lightning_modules.batching import Batch
from lightning_modules.datamodule import TextDataModule
from lightning_modules.flops import Shape, batch_bytes, parameters, state_bytes, step_flops
from lightning_modules.module import TransformerModule
from lightning_modules.optim import OPTIMIZERS
from lightning_modules.peak import matmul_peak

GPU = torch.device("cuda")
ROUNDS = 3
_TIMED = {"warm_steps": 4, "steps": 12, "tokens": 2**21, "bf16": True, "batch_tokens": 0}
DECODER = Work("decoder", 12, 768, 12, 3072, 2048, 1024, 32, vocab_size=50_304, **_TIMED)  # type: ignore[arg-type]
LARGER = Work("decoder", 24, 1024, 16, 4096, 2736, 1024, 16, vocab_size=50_304, **_TIMED)  # type: ignore[arg-type]
SPANS = Work("spans", 6, 512, 8, 2048, 0, 512, 128, vocab_size=37_056, **_TIMED)  # type: ignore[arg-type]


@dataclass
class Stopwatch:
    """Told of each step's real tokens; times those after the first few, waiting for the device at both ends only."""

    work: Work
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def tick(self, tokens: int) -> None:
        """A step has been put in line."""
        self.steps += 1
        self.tokens += tokens
        if self.steps in (self.work.warm_steps, self.work.warm_steps + self.work.steps):
            torch.cuda.synchronize()
            self.seconds = time.perf_counter() - self.seconds
            self.tokens = 0 if self.steps == self.work.warm_steps else self.tokens

    @property
    def rate(self) -> float:
        """Real tokens a second."""
        return self.tokens / self.seconds


class _Ticks(pl.Callback):
    def __init__(self, watch: Stopwatch) -> None:
        self.watch = watch

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: Batch, batch_idx: int
    ) -> None:
        self.watch.tick(real_tokens(batch, self.watch.work))


@dataclass
class Contestant:
    """Trains some steps each time it is asked; `parts`: of the preset whose FLOPs are counted."""

    size_and_parts: str
    work: Work
    parts: str
    train: Callable[[nn.Module, Work, Stopwatch], None]
    make: Callable[[Work], nn.Module]
    compiled: bool
    model: nn.Module | None = None
    rates: list[float] = field(default_factory=list)
    memory: int = 0  # bytes, the most of its last turn

    @property
    def name(self) -> str:
        """What it trains, and how."""
        return f"{self.size_and_parts}, {'compiled' if self.compiled else 'not compiled'}"

    def run(self) -> float:
        """Real tokens a second of the steps after the first few."""
        if self.model is None:
            self.model = self.make(self.work)
            if self.compiled:
                self.model.compile()
        watch = Stopwatch(self.work)
        torch.cuda.reset_peak_memory_stats()
        self.train(self.model.to(GPU), self.work, watch)
        self.memory = torch.cuda.max_memory_allocated()
        for parameter in self.model.parameters():
            parameter.grad = None
        self.model.to("cpu")  # no part of what the next needs
        return watch.rate


def steps(work: Work) -> int:
    """Of a turn."""
    return work.warm_steps + work.steps


def under_lightning(model: nn.Module, work: Work, watch: Stopwatch, packing: str) -> None:
    """As the stages do."""
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stderr(io.StringIO()):  # the bar
        batches = split(work, Path(name), packing)
        fit = trainer(Path(name), steps(work), NEVER, [_Ticks(watch)], "bf16-mixed", work.d_model, "gpu")
        fit.fit(TransformerModule(model, recipe(work, steps(work))), TextDataModule(batches, batches))  # type: ignore[arg-type]


def bare(model: nn.Module, work: Work, watch: Stopwatch) -> None:
    """A loop of a few lines on our model, batches of joined rows, and optimiser."""
    optimizer = OPTIMIZERS["adamw"](model, work.learning_rate, 0.01)
    model.train()
    with tempfile.TemporaryDirectory() as name:
        batches = split(work, Path(name), "joined")
        for number in range(steps(work)):
            batch = batches.training_batch(number, 0, 1)
            bare_step(model, move_data_to_device(batch, GPU), optimizer, bf16=True)
            watch.tick(real_tokens(batch, work))


class Scored(nn.Module):
    """Ids and the next ones → loss: what nanoGPT compiles."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.model = GPT(work)

    def forward(self, read_BL: Tensor, wanted_BL: Tensor) -> Tensor:
        """Mean over all positions, in nats."""
        return cross_entropy(self.model(read_BL), wanted_BL)


def nanogpt(model: nn.Module, work: Work, watch: Stopwatch) -> None:
    """Crops through pinned memory, the next drawn while the device is at work on the last."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=work.learning_rate, fused=True)
    model.train()

    def moved() -> tuple[Tensor, Tensor]:
        read_BL, wanted_BL = (ids_BL.pin_memory().to(GPU, non_blocking=True) for ids_BL in next(source)[0])
        return read_BL, wanted_BL

    source = crops(work)
    batch = moved()
    for _ in range(steps(work)):
        with torch.autocast(GPU.type, torch.bfloat16):
            loss = model(*batch)
        batch = moved()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        watch.tick(work.rows * work.length)


def contestants() -> list[Contestant]:
    """In the order of the table."""
    joined, apart = (partial(under_lightning, packing=packing) for packing in ("joined", "best_fit"))
    gpt2 = partial(make, parts="gpt2")
    found = []
    for size, work, compiled in (("124 M", DECODER, True), ("124 M", DECODER, False), ("350 M", LARGER, True)):
        found += [
            Contestant(f"{size}: nanoGPT's style", work, "gpt2", nanogpt, Scored, compiled),
            Contestant(f"{size}: GPT-2's parts, rows joined", work, "gpt2", joined, gpt2, compiled),
            Contestant(f"{size}: Llama's parts, documents apart", work, "llama-style", apart, make, compiled),
        ]
    found.append(Contestant("124 M: GPT-2's parts, rows joined, bare loop", DECODER, "gpt2", bare, gpt2, True))
    for compiled in (True, False):
        found.append(Contestant("63 M: encoder–decoder, spans", SPANS, "vaswani-base", joined, make, compiled))
    return found


def told_before(one: Contestant) -> tuple[float, int]:
    """What the pipeline says of a step before it runs: FLOPs by token of the text, and bytes at its peak."""
    with tempfile.TemporaryDirectory() as name:
        batch = split(one.work, Path(name) / "batch", "joined").training_batch(0, 0, 1)
    (rows, source), target = batch.source_BS.shape, batch.target_BT.shape[1]
    shape, architecture = Shape(rows, source, target, rows * target), config(one.work, one.parts)
    size = state_bytes(parameters(architecture), "adamw", True, 1) + batch_bytes(architecture, shape, True, True)
    return step_flops(architecture, shape) / (rows * one.work.length), size


def profile(one: Contestant) -> str:
    """The kernels that take the time of a turn."""
    one.run()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        one.run()
    return profiler.key_averages().table(sort_by="self_cuda_time_total", row_limit=40, max_name_column_width=90)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--only", nargs="+", default=[], metavar="WORDS", help="those whose names have one of these")
    parser.add_argument("--profile", metavar="WORDS", help="no table, but the kernels of the first with these")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("there is no GPU here")
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(1)
    wanted = [arguments.profile] if arguments.profile else arguments.only
    chosen = [one for one in contestants() if not wanted or any(words in one.name for words in wanted)]
    if not chosen:
        parser.error(f"none has {' or '.join(wanted)} in its name: {'; '.join(one.name for one in contestants())}")
    if arguments.profile:
        print(profile(chosen[0]))
        return
    peaks = []
    for number in range(arguments.rounds):
        for one in [*chosen]:
            peaks.append(matmul_peak(GPU, torch.bfloat16))
            began = time.perf_counter()
            try:
                one.rates.append(one.run())
            except RuntimeError as error:  # of a compiler, or of memory: the others have a result all the same
                print(f"{one.name} failed: {str(error)[:1000]}")
                chosen.remove(one)
                continue
            seconds = time.perf_counter() - began
            print(f"round {number + 1}: {one.name}: {one.rates[-1]:,.0f} tokens/s, {seconds:.0f} s", flush=True)
    peak = statistics.median(peaks)
    print(f"\n{torch.cuda.get_device_name()}, torch {torch.__version__}: a product {peak / 1e12:.0f} TFLOP/s\n")
    print(f"{'':62}{'tokens/s':>10}{'of the peak':>13}{'GiB':>7}{'told before':>13}")
    for one in chosen:
        (flops, size), rate = told_before(one), statistics.median(one.rates)
        told = f"{size / 2**30:>13.1f}" if not one.compiled and one.train is not nanogpt else ""
        print(f"{one.name:62}{rate:>10,.0f}{rate * flops / peak:>13.2f}{one.memory / 2**30:>7.1f}{told}")


if __name__ == "__main__":
    main()
