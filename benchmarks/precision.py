"""bf16 against fp32 on this CPU, by the width of the model: `python -m benchmarks.precision`. Three minutes.

How much faster a training step on random tokens is in bf16, of models in the shape of the small presets made wider; by
turns in one process. On CPUs with matrix units (AMX) it pays from some width on, whether all batches have one shape or
each another (`lightning_modules/transformer/matrix_units.py`).
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch

from lightning_modules.allocator import keep_memory
from lightning_modules.batching import Batch, make_batch
from lightning_modules.loss import batch_loss
from lightning_modules.model_folder import Model, new_model
from lightning_modules.objectives import CausalLM, Objective, SpanCorruption
from lightning_modules.optim import adamw
from lightning_modules.transformer.attention import expect_same_shapes
from lightning_modules.transformer.config import TransformerConfig
from lightning_modules.transformer.presets import preset

WIDTHS, HEAD, VOCAB, ROWS, LENGTH = (64, 128, 192, 256, 384, 512), 32, 8192, 16, 128
PAIRS, STEPS = 5, 3
Batches = Callable[[TransformerConfig, np.random.Generator], Batch]


def rows(objective: Objective) -> Batches:
    """Batches of one shape: 16 rows of 128 tokens."""

    def batch(config: TransformerConfig, rng: np.random.Generator) -> Batch:
        return make_batch(*objective(rng.integers(100, VOCAB, (ROWS, LENGTH)), rng), config)

    return batch


def sentences(config: TransformerConfig, rng: np.random.Generator) -> Batch:
    """Pairs that are about equally long, as many as 2,000 tokens hold: another shape each time."""
    source = int(rng.integers(5, 40))
    target = max(int(source * rng.normal(1.6, 0.3)), 2)
    count = ROWS * LENGTH // (source + target)
    return make_batch(rng.integers(100, VOCAB, (count, source)), rng.integers(100, VOCAB, (count, target)), config)


CONTESTANTS: dict[str, tuple[str, Batches]] = {
    "encoder–decoder, spans": ("small-encoder-decoder", rows(SpanCorruption(0.5, 10.0, 5, 64, 2))),
    "decoder": ("small-decoder", rows(CausalLM())),
    "encoder–decoder, pairs": ("small-encoder-decoder", sentences),
}


def ratios(shape: str, batches: Batches, width: int) -> Iterator[float]:
    """Seconds of a step in fp32 ÷ those in bf16 of the same batches, after one such comparison."""
    model = new_model(preset(shape, vocab_size=VOCAB, d_model=width, heads=width // HEAD, d_ff=4 * width), 0)
    optimizer = adamw(model, 1e-4, 0.01)
    expect_same_shapes(model, batches is not sentences)
    for number in range(PAIRS + 1):
        single, half = (seconds(model, optimizer, batches, number, half) for half in (False, True))
        if number:
            yield single / half


def seconds(model: Model, optimizer: torch.optim.Optimizer, batches: Batches, seed: int, half: bool) -> float:
    """Of a step."""
    rng = np.random.default_rng(seed)
    began = time.perf_counter()
    for _ in range(STEPS):
        batch = batches(model.config, rng)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss, tokens = batch_loss(model, batch, 0.0)
        (loss / tokens).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    return (time.perf_counter() - began) / STEPS


def main() -> None:
    """Prints the table."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    keep_memory()
    print("matrix units (AMX):", torch.cpu._is_amx_tile_supported())
    print(f"{'width':24}" + "".join(f"{width:>8}" for width in WIDTHS))
    for name, (shape, batches) in CONTESTANTS.items():
        medians = [statistics.median(ratios(shape, batches, width)) for width in WIDTHS]
        print(f"{name:24}" + "".join(f"{ratio:8.2f}" for ratio in medians))


if __name__ == "__main__":
    main()
