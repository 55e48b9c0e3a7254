"""Arrow arrays without pandas, which `pa.array` imports to see whether it is given any of its: 0.4 s, 30 MB."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

_MOST_BYTES = 2**31 - 1  # of an array of pa.string()


def binary_array(strings: Sequence[bytes]) -> pa.LargeBinaryArray:
    """An array of them."""
    ends = np.cumsum([0, *map(len, strings)], dtype=np.int64)
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(b"".join(strings))]
    return pa.Array.from_buffers(pa.large_binary(), len(strings), buffers)


def string_array(strings: Sequence[str]) -> Any:
    """An array of pa.string(); in several pieces where there is more than one can hold."""
    whole = binary_array([string.encode() for string in strings])
    if whole.nbytes > _MOST_BYTES:
        return pa.array(strings, pa.string())
    return whole.view(pa.large_string()).cast(pa.string())


def boolean_array(values: npt.NDArray[np.bool_]) -> pa.BooleanArray:
    """An array of pa.bool_()."""
    bits = np.packbits(values, bitorder="little")
    return pa.Array.from_buffers(pa.bool_(), len(values), [None, pa.py_buffer(bits)])
