"""Products with a weight by MKL and by oneDNN, which torch brings both: which is faster on this processor, and where.

    python -m benchmarks.linear

Interleaved rounds, medians, fp32, four minutes on two cores; how often MKL's time is oneDNN's, for the forward pass,
the gradient of the rows and that of the weight, and for a whole step of the decoder of `benchmarks.peers`, where oneDNN
has what `lightning_modules/transformer/linear.py` gives it on AMD's processors.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.peer_ours import bare_step, make, split
from benchmarks.peer_tools import WORKS
from lightning_modules.allocator import keep_memory
from lightning_modules.optim import OPTIMIZERS

WIDTHS, ROWS, ENTRIES = (128, 256, 320, 512, 768), (64, 1024, 4096), 8192
SECONDS, LEAST, MOST = 0.5, 7, 200  # of rounds
FLOPS = 1e11  # a second, by which the number of rounds is guessed
STEPS, WARM = 14, 2


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


def step_ratio() -> float:
    """Of a step of the 10 M decoder, the same model and batches making one with each by turns."""
    work = WORKS["decoder"]
    model = make(work).train()
    optimizer = OPTIMIZERS["adamw"](model, work.learning_rate, 0.01)
    taken: dict[bool, list[float]] = {False: [], True: []}
    with tempfile.TemporaryDirectory() as name:
        batches = split(work, Path(name))
        for number in range(STEPS):
            batch = batches.training_batch(number, 0, 1)
            for by_onednn, seconds in taken.items():
                with patch("lightning_modules.transformer.linear.mkl_is_slow", lambda way=by_onednn: way):
                    began = time.perf_counter()
                    bare_step(model, batch, optimizer)
                    seconds.append(time.perf_counter() - began)
    return statistics.median(mkl / other for mkl, other in zip(taken[False][WARM:], taken[True][WARM:], strict=True))


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
    print(f"a step of the decoder: {step_ratio():.2f}")


if __name__ == "__main__":
    main()
