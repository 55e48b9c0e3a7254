"""Fused attention beside the plain formula, forward and backward, and what each kind of mask adds. Seconds-long.

    python -m benchmarks.attention
    python -m benchmarks.attention --bf16

Interleaved rounds, medians; 4 heads of width 32 (bf16: of 64), 4,096 tokens a batch whatever the length.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from lightning_modules.allocator import keep_memory
from lightning_modules.transformer import plain_attention
from lightning_modules.transformer.apart import apart
from lightning_modules.transformer.masks import Visibility, may_see

HEADS, WIDTH, WIDTH_OF_HALF, TOKENS, ROUNDS = 4, 32, 64, 4096, 15
DOCUMENT = 107  # tokens of a packed document on average
LENGTHS = (32, 128, 512, 1024)
Ways = dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]]


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(Q·Kᵀ/√K)·V, the scores written to memory."""
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1) @ v


def contenders(length: int) -> Ways:
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


def half_contenders(length: int) -> Ways:
    """Ways to attend in bfloat16, the future and packed documents hidden; the first for the plain formula."""
    rows = TOKENS // length
    documents_BL = (torch.rand(rows, length) < 1 / DOCUMENT).cumsum(dim=1)
    packed = may_see(length, length, documents_BL.device, causal=True, documents=(documents_BL, documents_BL))
    fused = functional.scaled_dot_product_attention
    return {
        "plain formula": lambda q, k, v: plain_attention.attention(q, k, v, None, True, None),
        "the same, documents masked": lambda q, k, v: plain_attention.attention(q, k, v, packed, False, None),
        "fused": lambda q, k, v: fused(q, k, v, is_causal=True),
        "fused, documents masked": lambda q, k, v: fused(q, k, v, attn_mask=packed),
        "fused, in fp32 between": lambda q, k, v: fused(q.float(), k.float(), v.float(), is_causal=True).bfloat16(),
    }


def milliseconds(length: int, half: bool) -> dict[str, float]:
    """Median of forward and backward for each contender."""
    shape, dtype = (TOKENS // length, length, HEADS, WIDTH_OF_HALF if half else WIDTH), torch.bfloat16 if half else None
    q, k, v = (torch.randn(shape, dtype=dtype).transpose(1, 2).requires_grad_() for _ in range(3))
    ways = half_contenders(length) if half else contenders(length)
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
    parser.add_argument("--bf16", action="store_true", help="ways to learn in bf16, for CPUs that have matrix units")
    arguments = parser.parse_args()
    keep_memory()
    torch.manual_seed(0)
    table = {length: milliseconds(length, arguments.bf16) for length in LENGTHS}
    print(f"{'ms (times the plain formula)':<36}" + "".join(f"{length:>18}" for length in LENGTHS))
    for name in table[LENGTHS[0]]:
        cells = [f"{table[n][name]:.1f} ({table[n][name] / table[n]['plain formula']:.2f})" for n in LENGTHS]
        print(f"{name:<36}" + "".join(f"{cell:>18}" for cell in cells))


if __name__ == "__main__":
    main()
