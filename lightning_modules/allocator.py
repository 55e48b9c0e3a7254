"""The C allocator, told to keep memory. Without this each step maps, clears and unmaps its large tensors again.

Worth 1.07× a training step of a 2 M-parameter encoder–decoder on two cores (94 → 87 ms, `python -m
benchmarks.training_step`), and more where tensors are larger (`python -m benchmarks.peers`), for more resident memory.
"""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # <malloc.h>


def keep_memory() -> None:
    """Lets freed memory stay with the process. Does nothing where the C library is not glibc."""
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)  # large blocks come from the heap, too, which is never unmapped …
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)  # … and not given back at its end
        mallopt(_M_TOP_PAD, 2**26)
