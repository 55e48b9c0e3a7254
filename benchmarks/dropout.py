"""Dropout with four elements a random number beside torch's with one each, and what it costs attention. Seconds-long.

    python -m benchmarks.dropout

Interleaved rounds, medians, fp32, forward and backward; one thread, as random numbers are drawn by one.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from lightning_modules.allocator import keep_memory
from lightning_modules.transformer.dropout import dropout

ROWS, LENGTH, WIDTH, HEADS, ROUNDS, WARM, SHARE = 8, 512, 320, 5, 25, 3, 0.1


def contenders() -> dict[str, dict[str, Callable[[], Tensor]]]:
    """What is compared with what."""
    x_BLD = torch.randn(ROWS, LENGTH, WIDTH, requires_grad=True)
    q, k, v = (torch.randn(ROWS, HEADS, LENGTH, WIDTH // HEADS, requires_grad=True) for _ in range(3))
    fused = functional.scaled_dot_product_attention
    return {
        f"{ROWS} × {LENGTH} vectors of {WIDTH}": {
            "torch": lambda: functional.dropout(x_BLD, SHARE),
            "ours": lambda: dropout(x_BLD, SHARE),
        },
        f"attention, {HEADS} heads": {
            "with dropout of its weights": lambda: fused(q, k, v, is_causal=True, dropout_p=SHARE),
            "without": lambda: fused(q, k, v, is_causal=True),
        },
    }


def milliseconds(ways: dict[str, Callable[[], Tensor]]) -> dict[str, float]:
    """Median of forward and backward for each."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    above = {name: torch.ones_like(way()) for name, way in ways.items()}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            began = time.perf_counter()
            way().backward(above[name])  # type: ignore[no-untyped-call]
            taken[name].append(1000 * (time.perf_counter() - began))
    return {name: statistics.median(times[WARM:]) for name, times in taken.items()}


def main() -> None:
    """Prints milliseconds, and how many times as fast the second is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()
    torch.manual_seed(0)
    for title, ways in contenders().items():
        (slow, before), (fast, after) = milliseconds(ways).items()
        print(f"{title}: {slow} {before:.1f} ms, {fast} {after:.1f} ms ({before / after:.1f}×)")


if __name__ == "__main__":
    main()
