"""Parts of a training step that have a way of their own on a GPU, in milliseconds: `python -m benchmarks.gpu_parts`.

A minute. Cross-entropy over a large vocabulary, attention over rows with and without packed documents, and the mask
of these; forward and backward, bf16, each after three runs that are not counted. What the pipeline takes is marked.
"""

import argparse
import time
from collections.abc import Callable
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention

from lightning_modules.peak import matmul_peak
from lightning_modules.transformer import cross_entropy
from lightning_modules.transformer.masks import document_blocks

GPU = torch.device("cuda")
ROWS, HEADS, LENGTH, HEAD_WIDTH = 32, 12, 1024, 64
POSITIONS, WIDTH, ENTRIES, ODD_ENTRIES = 32_768, 768, 50_304, 50_257
TIMES = 10


def milliseconds(work: Callable[[], object]) -> float:
    """Mean of some runs."""
    for _ in range(3):
        work()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(TIMES):
        work()
    torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - began) / TIMES


def told(name: str, work: Callable[[], object]) -> None:
    """A line of the table."""
    print(f"{name:72}{milliseconds(work):>8.2f}", flush=True)


def scores() -> None:
    """Cross-entropy."""
    hidden_ND = torch.randn(POSITIONS, WIDTH, device=GPU, requires_grad=True)

    def weight(entries: int) -> Tensor:
        return (torch.randn(entries, WIDTH, device=GPU) * 0.02).requires_grad_()

    def learn(weight_VD: Tensor) -> None:
        with torch.autocast("cuda", torch.bfloat16):
            nats = cross_entropy.linear_cross_entropy(hidden_ND, weight_VD, None, target_N, 0.0)
        nats.backward()  # type: ignore[no-untyped-call]

    def products(weight_VD: Tensor) -> None:
        hidden, matrix = hidden_ND.detach().bfloat16(), weight_VD.detach().bfloat16()
        score_NV = hidden @ matrix.T
        _ = score_NV @ matrix, score_NV.T @ hidden

    target_N = torch.randint(0, ODD_ENTRIES, (POSITIONS,), device=GPU)
    even_VD, odd_VD = weight(ENTRIES), weight(ODD_ENTRIES)
    print(f"cross-entropy of {POSITIONS:,} positions, width {WIDTH}, {ENTRIES:,} entries")
    told("  its three products alone", lambda: products(even_VD))
    for piece in (2048, 4096, 8192, 16_384):
        with patch.object(cross_entropy, "GPU_PIECE", piece):
            told(f"  compiled, in pieces of {piece:,}", lambda: learn(even_VD))
    told(f"  {ODD_ENTRIES:,} entries, padded for the products (ours)", lambda: learn(odd_VD))
    with patch.object(cross_entropy, "ALIGNED", 1):
        told(f"  {ODD_ENTRIES:,} entries as they are", lambda: learn(odd_VD))


def attention() -> None:
    """Attention, and the mask of packed documents."""
    shape = (ROWS, LENGTH, HEADS, HEAD_WIDTH)
    parts = [torch.randn(shape, device=GPU, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    gradient_BHLK = torch.randn(ROWS, HEADS, LENGTH, HEAD_WIDTH, device=GPU, dtype=torch.bfloat16)
    lengths = torch.distributions.LogNormal(4.04, 1.05).sample((ROWS, 200)).int().clamp(min=1)  # type: ignore[no-untyped-call]
    number_N = torch.arange(200)
    documents_BL = torch.stack([torch.repeat_interleave(number_N, one)[:LENGTH] for one in lengths]).to(GPU)
    compiled, compiled_blocks = torch.compile(flex_attention), torch.compile(document_blocks)
    packed, whole = (document_blocks(numbers, True, None) for numbers in (documents_BL, 0 * documents_BL))

    def learn(attend: Callable[..., Tensor], **options: object) -> None:
        attend(*(part.transpose(1, 2) for part in parts), **options).backward(gradient_BHLK)  # type: ignore[no-untyped-call]

    def fused() -> None:
        learn(functional.scaled_dot_product_attention, is_causal=True)

    print(f"causal attention, {ROWS} rows of {LENGTH:,} tokens, {HEADS} heads of {HEAD_WIDTH}")
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
        with sdpa_kernel(backend):
            told(f"  {backend.name.lower()}", fused)
    told("  as torch chooses (ours)", fused)
    told("  flex attention", lambda: learn(compiled, block_mask=whole))
    told(
        "  flex attention, documents of 107 tokens on average apart (ours)", lambda: learn(compiled, block_mask=packed)
    )
    told("  the mask for that", lambda: document_blocks(documents_BL, True, None))
    told("  the same, compiled (ours)", lambda: compiled_blocks(documents_BL, True, None))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("there is no GPU here")
    torch.manual_seed(1)
    peak = matmul_peak(GPU, torch.bfloat16) / 1e12
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}: a product {peak:.0f} TFLOP/s\n")
    scores()
    attention()


if __name__ == "__main__":
    main()
