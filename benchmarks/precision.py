"""bf16 against fp32 on this CPU, by the width of the model: `python -m benchmarks.precision`. Two minutes.

How much faster a training step on random tokens (16 rows of 128) is in bf16, for the small encoder–decoder and the
small decoder made wider; by turns in one process. On CPUs with matrix units (AMX) it pays from some width on.
"""

import argparse
import statistics
import time

import numpy as np
import torch

from lightning_modules.allocator import keep_memory
from lightning_modules.batching import make_batch
from lightning_modules.loss import batch_loss
from lightning_modules.model_folder import Model, new_model
from lightning_modules.objectives import CausalLM, Objective, SpanCorruption
from lightning_modules.optim import adamw
from lightning_modules.transformer.presets import preset

WIDTHS, HEAD, VOCAB, ROWS, LENGTH = (128, 192, 256, 384, 512), 32, 8192, 16, 128
PAIRS, STEPS = 5, 3
OBJECTIVES: dict[str, Objective] = {
    "small-encoder-decoder": SpanCorruption(0.5, 10.0, 5, 64, 2),
    "small-decoder": CausalLM(),
}


def seconds(model: Model, optimizer: torch.optim.Optimizer, objective: Objective, half: bool) -> float:
    """Of a step."""
    rng = np.random.default_rng(0)
    began = time.perf_counter()
    for _ in range(STEPS):
        rows = rng.integers(100, VOCAB, (ROWS, LENGTH))
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss, tokens = batch_loss(model, make_batch(*objective(rows, rng), model.config), 0.0)
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
    for name, objective in OBJECTIVES.items():
        ratios = []
        for width in WIDTHS:
            config = preset(name, vocab_size=VOCAB, d_model=width, heads=width // HEAD, d_ff=4 * width)
            model = new_model(config, 0)
            optimizer = adamw(model, 1e-4, 0.01)
            pairs = [[seconds(model, optimizer, objective, half) for half in (False, True)] for _ in range(PAIRS + 1)]
            ratios.append(statistics.median(single / half for single, half in pairs[1:]))
        print(f"{name:24}" + "".join(f"{ratio:8.2f}" for ratio in ratios))


if __name__ == "__main__":
    main()
