"""Positional encoding (section 3.5 of the paper)."""

import math

import torch
from torch import Tensor, nn


def sinusoids(length: int, d_model: int) -> Tensor:
    """The table of sines and cosines, (length, D): wavelengths from 2π to 10000·2π in geometric progression.

    Dimension 2i holds sin(position / 10000^(2i/D)), dimension 2i + 1 the cosine (section 3.5).
    """
    position_L1 = torch.arange(length, dtype=torch.float32)[:, None]
    rate = torch.exp(torch.arange(0, d_model, 2, dtype=torch.float32) * (-math.log(10_000.0) / d_model))
    table_LD = torch.empty(length, d_model)
    table_LD[:, 0::2] = torch.sin(position_L1 * rate)
    table_LD[:, 1::2] = torch.cos(position_L1 * rate)
    return table_LD


class SinusoidalPositions(nn.Module):
    """Adds the sinusoids to embeddings; nothing is learned, so the table is not part of the checkpoint."""

    table_LD: Tensor

    def __init__(self, max_length: int, d_model: int) -> None:
        super().__init__()
        self.register_buffer("table_LD", sinusoids(max_length, d_model), persistent=False)

    def forward(self, x_BLD: Tensor, start: int = 0) -> Tensor:
        """Adds positions start, start + 1, …; raises ValueError beyond the table."""
        end = start + x_BLD.shape[1]
        if end > self.table_LD.shape[0]:
            raise ValueError(f"a sequence of {end} tokens is longer than model.max_length ({self.table_LD.shape[0]})")
        return x_BLD + self.table_LD[start:end].to(x_BLD.dtype)
