"""The cross-entropy in pieces beside all scores at once and torch's own, forward and backward.

    python -m benchmarks.loss

Interleaved rounds, medians; 4,096 positions, fp32; about three minutes on two cores. What is kept is held from the
forward to the backward pass, as far as autograd tells: of torch's own it does not.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import LinearCrossEntropyOptions, functional

from lightning_modules.allocator import keep_memory
from lightning_modules.transformer.cross_entropy import linear_cross_entropy

POSITIONS, ROUNDS, WARM = 4096, 7, 2
SHAPES = ((128, 8192), (256, 32_768), (512, 32_768))  # (width, vocabulary)


def all_at_once(hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor) -> Tensor:
    """What a loss is made of as a rule."""
    return functional.cross_entropy(functional.linear(hidden_ND, weight_VD), target_N, reduction="sum")


def ours(hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor) -> Tensor:
    """As `lightning_modules.loss` has it."""
    return linear_cross_entropy(hidden_ND, weight_VD, None, target_N, 0.0)


def torchs(chunk: int | None) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Torch's own, in chunks of so many positions, or of the size that it chooses."""
    options = LinearCrossEntropyOptions(batch_chunk_size=chunk)

    def loss(hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor) -> Tensor:
        return functional.linear_cross_entropy(hidden_ND, weight_VD, target_N, reduction="sum", options=options)

    return loss


WAYS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "all scores at once": all_at_once,
    "in pieces": ours,
    "torch, its own chunks": torchs(None),
    "torch, chunks of 512": torchs(512),
}


def measure(width: int, entries: int) -> dict[str, tuple[float, float]]:
    """(Median milliseconds, megabytes kept) of each way."""
    torch.manual_seed(0)
    hidden_ND = torch.randn(POSITIONS, width, requires_grad=True)
    weight_VD = (torch.randn(entries, width) * width**-0.5).requires_grad_()
    target_N = torch.randint(0, entries, (POSITIONS,))
    taken: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(ROUNDS):
        for name, way in WAYS.items():
            hidden_ND.grad = weight_VD.grad = None
            began = time.perf_counter()
            way(hidden_ND, weight_VD, target_N).backward()  # type: ignore[no-untyped-call]
            taken[name].append(1000 * (time.perf_counter() - began))
    return {
        name: (statistics.median(taken[name][WARM:]), kept_bytes(way, hidden_ND, weight_VD, target_N) / 1e6)
        for name, way in WAYS.items()
    }


def kept_bytes(
    way: Callable[[Tensor, Tensor, Tensor], Tensor], hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor
) -> int:
    """Bytes that autograd holds between the passes, its arguments aside."""
    own = {x.untyped_storage().data_ptr() for x in (hidden_ND, weight_VD, target_N)}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = way(hidden_ND, weight_VD, target_N)
    loss.backward()  # type: ignore[no-untyped-call]
    return sum(count for pointer, count in kept.items() if pointer not in own)


def main() -> None:
    """Prints the table: milliseconds, the share of all-at-once's, megabytes kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    keep_memory()
    for width, entries in SHAPES:
        table = measure(width, entries)
        print(f"width {width}, vocabulary {entries:,}")
        for name, (milliseconds, megabytes) in table.items():
            share = milliseconds / table["all scores at once"][0]
            kept = f"{megabytes:.1f} MB kept" if megabytes else ""
            print(f"  {name:<24}{milliseconds:9.1f} ms {share:6.2f}× {kept:>18}")


if __name__ == "__main__":
    main()
