"""The process's memory, small: what Arrow and the C library free goes back to the system at once.

For work that makes and drops arrays of some MB all the time. Tokenizing, it makes 100 MB of anonymous memory 55, and
costs some 10 % of the time. Training wants the contrary (`lightning_modules.allocator`).
"""

import ctypes
import sys

import pyarrow as pa

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # <malloc.h>
_BYTES = 1 << 18


def give_memory_back() -> None:
    """From now on. Of the C library where it is glibc."""
    pa.set_memory_pool(pa.system_memory_pool())
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _BYTES)  # glibc raises both by itself, unless they are set
        mallopt(_M_TRIM_THRESHOLD, _BYTES)
