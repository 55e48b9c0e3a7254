"""Products with a weight by MKL and by oneDNN, which torch brings both: which is faster on this processor, and where.

    python -m benchmarks.linear

Interleaved rounds, medians, fp32, two minutes on two cores; how often MKL's time is oneDNN's, for the forward pass, the
gradient of the rows and that of the weight. `lightning_modules/transformer/linear.py` follows what it says of AMD's.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from lightning_modules.allocator import keep_memory

WIDTHS, ROWS, ENTRIES = (128, 256, 320, 512, 768), (64, 1024, 4096), 8192
SECONDS, LEAST, MOST = 0.5, 7, 200  # of rounds
FLOPS = 1e11  # a second, by which the number of rounds is guessed


def onednn(x_NI: Tensor, weight_OI: Tensor) -> Tensor:
    """x·Wᵀ."""
    return torch.ops.mkldnn._linear_pointwise(x_NI, weight_OI, None, "none", [], "")  # type: ignore[no-any-return]


def ratio(mkl: Callable[[], Tensor], other: Callable[[], Tensor], flops: int) -> float:
    """Median of the first's time ÷ the second's. Raises AssertionError where their results differ."""
    torch.testing.assert_close(mkl(), other(), atol=1e-2, rtol=1e-3)
    ratios = []
    for _ in range(max(LEAST, min(MOST, int(SECONDS * FLOPS / flops)))):
        began = time.perf_counter()
        mkl()
        between = time.perf_counter()
        other()
        ratios.append((between - began) / (time.perf_counter() - between))
    return statistics.median(ratios)


def ratios(rows: int, inputs: int, outputs: int) -> tuple[float, float, float]:
    """Of forward, gradient of the rows, gradient of the weight."""
    x_NI, weight_OI, gradient_NO = torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(rows, outputs)
    flops = 2 * rows * inputs * outputs
    return (
        ratio(lambda: x_NI @ weight_OI.T, lambda: onednn(x_NI, weight_OI), flops),
        ratio(lambda: gradient_NO @ weight_OI, lambda: onednn(gradient_NO, weight_OI.T.contiguous()), flops),
        ratio(lambda: gradient_NO.T @ x_NI, lambda: onednn(gradient_NO.T, x_NI.T), flops),
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    keep_memory()
    torch.manual_seed(0)
    print(f"{'width':>6}{'rows':>6}" + "".join(f"{name:>21}" for name in ("D → D", "D → 4D", "4D → D", "scores")))
    for width in WIDTHS:
        for rows in ROWS:
            shapes = ((width, width), (width, 4 * width), (4 * width, width), (width, ENTRIES))
            cells = ["{:.2f} {:.2f} {:.2f}".format(*ratios(rows, *shape)) for shape in shapes]
            print(f"{width:>6}{rows:>6}" + "".join(f"{cell:>21}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
