"""Fused attention beside the plain formula, forward and backward, and what each kind of mask adds. Seconds-long.

    python -m benchmarks.attention

Interleaved rounds, medians; 4 heads of width 32, 4,096 tokens a batch whatever the length.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from lightning_modules.transformer.apart import apart
from lightning_modules.transformer.masks import Visibility, may_see

HEADS, WIDTH, TOKENS, ROUNDS = 4, 32, 4096, 15
DOCUMENT = 107  # tokens of a packed document on average
LENGTHS = (32, 128, 512, 1024)


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(Q·Kᵀ/√K)·V, the scores written to memory."""
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1) @ v


def contenders(length: int) -> dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]]:
    """Ways to attend in rows of `length` tokens."""
    rows = TOKENS // length
    documents_BL = (torch.rand(rows, length) < 1 / DOCUMENT).cumsum(dim=1)
    packed = may_see(length, length, documents_BL.device, causal=True, documents=(documents_BL, documents_BL))
    groups = apart(documents_BL, documents_BL, None, None, lambda *_: Visibility(causal=True))
    fixed, learned = torch.randn(1, HEADS, length, length), torch.randn(1, HEADS, length, length, requires_grad=True)
    fused = functional.scaled_dot_product_attention
    return {
        "plain formula": plain,
        "fused": fused,
        "fused, causal": lambda q, k, v: fused(q, k, v, is_causal=True),
        "fused, causal, documents masked": lambda q, k, v: fused(q, k, v, attn_mask=packed),
        "fused, causal, documents one by one": lambda q, k, v: groups.attend(
            q, k, v, lambda q, k, v, _: fused(q, k, v, is_causal=True)
        ),
        "fused, fixed bias (ALiBi)": lambda q, k, v: fused(q, k, v, attn_mask=fixed),
        "learned bias (T5)": lambda q, k, v: fused(q, k, v, attn_mask=learned),
    }


def milliseconds(length: int) -> dict[str, float]:
    """Median of forward and backward for each contender."""
    q, k, v = (torch.randn(TOKENS // length, HEADS, length, WIDTH, requires_grad=True) for _ in range(3))
    ways = contenders(length)
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, attend in ways.items():
            began = time.perf_counter()
            attend(q, k, v).sum().backward()  # type: ignore[no-untyped-call]
            taken[name].append(1000 * (time.perf_counter() - began))
    return {name: statistics.median(times[3:]) for name, times in taken.items()}


def main() -> None:
    """Prints the table: milliseconds, and the share of the plain formula's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    torch.manual_seed(0)
    table = {length: milliseconds(length) for length in LENGTHS}
    print(f"{'ms (times the plain formula)':<36}" + "".join(f"{length:>18}" for length in LENGTHS))
    for name in table[LENGTHS[0]]:
        cells = [f"{table[n][name]:.1f} ({table[n][name] / table[n]['plain formula']:.2f})" for n in LENGTHS]
        print(f"{name:<36}" + "".join(f"{cell:>18}" for cell in cells))


if __name__ == "__main__":
    main()
