"""Positional encoding: where a token stands, said in the embeddings, in queries and keys, or in the scores.

The 2017 paper's sinusoids (section 3.5) and learned vectors are added to the embeddings. Rotary positions (Su et al.
2021, arXiv:2104.09864, section 3.2) turn queries and keys. ALiBi (Press et al. 2022, arXiv:2108.12409, section 3) and
T5's relative bias (Raffel et al. 2020, arXiv:1910.10683, section 2.1) are added to the scores. Only learned vectors
end at the length they were made for. All are computed once a forward pass, not once a layer.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_modules.transformer.gradients import turn


class SinusoidalPositions(nn.Module):
    """Adds sin(position·rateᵢ) to dimension i and cos(position·rateᵢ) to dimension D/2 + i, rateᵢ = 10000^(-2i/D).

    The paper's formula has sine and cosine of a rate side by side. The order of dimensions means nothing to the layers
    above; halves are what the authors' own code and Marian use.
    """

    rate_K: Tensor

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.register_buffer("rate_K", _rates(10_000.0, d_model), persistent=False)

    def forward(self, x_BLD: Tensor, positions_BL: Tensor) -> Tensor:
        """Embeddings and their positions, (B or 1, L) → their sum. Any length."""
        angle_BLK = positions_BL[..., None] * self.rate_K
        return x_BLD + torch.cat([angle_BLK.sin(), angle_BLK.cos()], dim=-1).to(x_BLD.dtype)


class LearnedPositions(nn.Module):
    """Adds a learned vector for each position up to `max_length` (Gehring et al. 2017, arXiv:1705.03122)."""

    def __init__(self, max_length: int, d_model: int) -> None:
        super().__init__()
        self.weight_LD = nn.Parameter(torch.empty(max_length, d_model))

    def forward(self, x_BLD: Tensor, positions_BL: Tensor) -> Tensor:
        """Embeddings and their positions, (B or 1, L) → their sum."""
        return x_BLD + functional.embedding(positions_BL, self.weight_LD)


class RotaryPositions(nn.Module):
    """Turns each pair (i, K/2 + i) of a query or key by position·base^(-2i/K): scores depend on distances alone.

    Positions divided by `scaling` let a model see contexts that many times longer (Chen et al. 2023, arXiv:2306.15595).
    """

    rate_K: Tensor

    def __init__(self, head_width: int, base: float, scaling: float) -> None:
        super().__init__()
        self.register_buffer("rate_K", _rates(base, head_width, scaling), persistent=False)

    def forward(self, positions_L: Tensor) -> tuple[Tensor, Tensor]:
        """Positions (L) → cosines and sines, each (L, K)."""
        angle_LK = positions_L[:, None] * self.rate_K.repeat(2)
        return angle_LK.cos(), angle_LK.sin()


def _rates(base: float, width: int, scaling: float = 1.0) -> Tensor:
    """base^(-2i/width)/scaling. Made on the CPU: on the meta device torch would load its compiler for it, 2 s."""
    exponent_K = torch.arange(0, width, 2, dtype=torch.float32, device="cpu") / width
    return (base**-exponent_K / scaling).to(torch.get_default_device())


def rotate(x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """Queries or keys (…, L, K), turned by the cosines and sines (L, K) of their positions."""
    cos, sin = turns
    return turn(x, cos.to(x.dtype), sin.to(x.dtype))


class AlibiBias(nn.Module):
    """Minus distance times a slope for each head: the further, the less. Nothing is learned."""

    slope_H: Tensor

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.register_buffer("slope_H", torch.tensor(alibi_slopes(heads)), persistent=False)

    def forward(self, query_L: Tensor, key_S: Tensor) -> Tensor:
        """Positions of queries and keys → what is added to the scores, (1, H, L, S)."""
        distance_LS = (query_L[:, None] - key_S[None, :]).abs()
        return -self.slope_H[None, :, None, None] * distance_LS


def alibi_slopes(heads: int) -> list[float]:
    """A geometric sequence from 2^(-8/heads) to 2^-8; for other numbers than powers of two, as the authors' code fills
    the gaps: the sequence of the power below, then every second of the sequence of the power above."""
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2.0 ** (-8.0 * (n + 1) / power) for n in range(power)]
    return slopes + [2.0 ** (-4.0 * (n + 1) / power) for n in range(0, 2 * (heads - power), 2)]


class RelativeBias(nn.Module):
    """A learned bias for each head and bucket of distances; nearby distances have buckets of their own (T5).

    In a decoder only the past has buckets; in an encoder, past and future have half of them each.
    """

    def __init__(self, heads: int, buckets: int, distance: int, bidirectional: bool) -> None:
        super().__init__()
        self.weight_NH = nn.Parameter(torch.empty(buckets, heads))
        self.distance, self.bidirectional = distance, bidirectional

    def forward(self, query_L: Tensor, key_S: Tensor) -> Tensor:
        """Positions of queries and keys → what is added to the scores, (1, H, L, S)."""
        bias_LSH = functional.embedding(self._bucket(key_S[None, :] - query_L[:, None]), self.weight_NH)
        return bias_LSH.permute(2, 0, 1)[None]

    def _bucket(self, offset_LS: Tensor) -> Tensor:
        """Half of a direction's buckets hold one distance each, the other half ever more, up to `distance`."""
        buckets, bucket_LS = self.weight_NH.shape[0], torch.zeros_like(offset_LS)
        if self.bidirectional:
            buckets //= 2
            bucket_LS = (offset_LS > 0) * buckets
            away_LS = offset_LS.abs()
        else:
            away_LS = (-offset_LS).clamp(min=0)
        exact = buckets // 2
        share_LS = torch.log(away_LS.clamp(min=1) / exact) / math.log(self.distance / exact)
        wide_LS = (exact + (share_LS * (buckets - exact)).long()).clamp(max=buckets - 1)
        return bucket_LS + torch.where(away_LS < exact, away_LS, wide_LS)
