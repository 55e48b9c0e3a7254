"""How fast this device multiplies matrices: the peak that a training's share is measured against. Costs about 0.1 s.

A product of two large square matrices in the precision that training computes in, the best of several: what torch's
libraries reach here, not what a data sheet promises.
"""

import time

import torch

_SIDE = {"cpu": 1024, "cuda": 8192}
_ENOUGH = 0.1  # seconds


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a matrix product in `dtype` on `device`."""
    side = _SIDE[device.type]
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))

    def seconds() -> float:
        began = time.perf_counter()
        left @ right
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    seconds()  # the first call chooses a kernel
    times: list[float] = []
    while len(times) < 3 or sum(times) < _ENOUGH:
        times.append(seconds())
    return 2 * side**3 / min(times)
