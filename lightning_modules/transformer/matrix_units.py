"""Products of bfloat16 on CPUs with matrix units (AMX), of as few shapes as can be.

oneDNN writes a program for each shape of product when it first comes: 1.5 to 3 ms and some 0.8 MB, of which 1,024 are
kept. Batches of texts differ in shape, so that steps of small models would wait for little else: by filling up rows
training on pairs is up to twice as fast (`python -m benchmarks.precision`). Costs a copy of what is filled up.
"""

import torch
from torch import Tensor
from torch.nn import functional

ROWS = 128  # of which rows are filled up to a multiple


def multiply(x: Tensor) -> bool:
    """Whether they multiply x: in bfloat16, its own or autocast's, in a program that runs."""
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    autocast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    half = x.dtype == torch.bfloat16 or (autocast and x.dtype == torch.float32)
    return half and torch.cpu._is_amx_tile_supported()


def filled_up(x_ND: Tensor) -> Tensor:
    """With rows of zeros, as many as are missing."""
    missing = -len(x_ND) % ROWS
    return functional.pad(x_ND, (0, 0, 0, missing)) if missing else x_ND
