"""Multi-head attention (section 3.2 of the paper) over torch's fused scaled-dot-product kernel.

Scores are never written to memory: on a CPU 1.5 to 2.5 times as fast as the plain formula, masks and fixed biases
included. A bias that is learned (T5's) needs them for its gradient, and is slower than that (`python -m
benchmarks.attention`); so is dropout of attention weights on a CPU, where the kernel has none (`python -m
benchmarks.dropout`). In bfloat16 a CPU learns by the formula, or in float32, where the kernel would cost more.
"""

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_modules.transformer import plain_attention
from lightning_modules.transformer.config import TransformerConfig
from lightning_modules.transformer.gradients import RMSNorm, learns
from lightning_modules.transformer.linear import Linear
from lightning_modules.transformer.masks import Visibility
from lightning_modules.transformer.positions import rotate

ROOM = 16  # steps


class KeyValueCache:
    """Keys and values of one attention layer while decoding: grown by self-attention, fixed by cross-attention.

    There is room for the next ROOM steps: a new column is written in its place, and all are copied once in so many
    steps, a sixteenth of what attention reads.
    """

    def __init__(self) -> None:
        self.columns = 0
        self._key_BHCK: Tensor | None = None  # C: columns and room for more
        self._value_BHCK: Tensor | None = None

    @property
    def key_BHLK(self) -> Tensor | None:  # noqa: N802
        """The keys; None before there are any."""
        return None if self._key_BHCK is None else self._key_BHCK[:, :, : self.columns]

    @property
    def value_BHLK(self) -> Tensor | None:  # noqa: N802
        """The values; None before there are any."""
        return None if self._value_BHCK is None else self._value_BHCK[:, :, : self.columns]

    def extend(self, key_BHLK: Tensor, value_BHLK: Tensor) -> tuple[Tensor, Tensor]:
        """Adds new columns; gives all. The first are kept as they are."""
        before, self.columns = self.columns, self.columns + key_BHLK.shape[2]
        if self._key_BHCK is None or self._value_BHCK is None:
            # Those of cross-attention, or of a prompt, are read at every step: 10 % faster in one piece.
            self._key_BHCK, self._value_BHCK = key_BHLK.contiguous(), value_BHLK.contiguous()
            return self._key_BHCK, self._value_BHCK
        if self.columns > self._key_BHCK.shape[2]:
            room = before + ROOM * key_BHLK.shape[2]
            self._key_BHCK, self._value_BHCK = (
                _roomier(side[:, :, :before], room) for side in (self._key_BHCK, self._value_BHCK)
            )
        key_BHNK, value_BHNK = self._key_BHCK[:, :, : self.columns], self._value_BHCK[:, :, : self.columns]
        key_BHNK[:, :, before:], value_BHNK[:, :, before:] = key_BHLK, value_BHLK
        return key_BHNK, value_BHNK

    def keep(self, rows: Tensor) -> None:
        """Keeps the given rows of the batch, in the order given."""
        if self._key_BHCK is not None and self._value_BHCK is not None:
            self._key_BHCK, self._value_BHCK = self._key_BHCK[rows], self._value_BHCK[rows]


def _roomier(x_BHLK: Tensor, room: int) -> Tensor:
    batch, heads, columns, width = x_BHLK.shape
    x_BHCK = x_BHLK.new_empty(batch, heads, room, width)
    x_BHCK[:, :, :columns] = x_BHLK
    return x_BHCK


@dataclass
class LayerCache:
    """What a decoder layer remembers between steps."""

    own: KeyValueCache = field(default_factory=KeyValueCache)
    cross: KeyValueCache = field(default_factory=KeyValueCache)


class Attention(nn.Module):
    """softmax(Q·Kᵀ/√K)·V in each head; queries from `x`, keys and values from `x` itself or from `memory`.

    With fewer heads of keys and values than of queries, groups of queries share one: grouped-query attention (Ainslie
    et al. 2023, arXiv:2305.13245), multi-query with a single one (Shazeer 2019, arXiv:1911.02150). Queries and keys
    can be normalised in each head (Dehghani et al. 2023, arXiv:2302.05442, section 2).
    """

    same_shapes = False  # whether batches have one shape, told by `expect_same_shapes`

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width, bias = config.width_of_heads, config.bias
        self.heads, self.groups, self.dropout = config.heads, config.groups, config.attention_dropout
        self.scale = None if config.scale_attention else 1.0
        self.query = Linear(config.d_model, self.heads * width, bias=bias)
        self.key_value = Linear(config.d_model, 2 * self.groups * width, bias=bias)
        self.output = Linear(self.heads * width, config.d_model, bias=bias)
        self.query_norm = RMSNorm(width, eps=config.norm_eps) if config.qk_norm else None
        self.key_norm = RMSNorm(width, eps=config.norm_eps) if config.qk_norm else None

    def forward(
        self,
        x_BLD: Tensor,
        visibility: Visibility,
        memory_BSD: Tensor | None = None,
        turns: tuple[Tensor, Tensor] | None = None,
        cache: KeyValueCache | None = None,
        columns_BM: Tensor | None = None,
    ) -> Tensor:
        """Attends; returns (B, L, D), or (B, M, D) where only those `columns` of x are queries.

        `turns` are the rotary cosines and sines of x's positions. With a cache `x` holds the new positions only, which
        are added to it; cross-attention fills its cache once and reads it afterwards.
        """
        q_BHLK = self._queries(x_BLD, turns, columns_BM)
        k_BHSK, v_BHSK = self._keys_and_values(x_BLD, memory_BSD, turns, cache)
        out_BHLK = self._attend(q_BHLK, k_BHSK, v_BHSK, visibility)
        return self.output(out_BHLK.transpose(1, 2).flatten(2))

    def weights(
        self,
        x_BLD: Tensor,
        visibility: Visibility,
        memory_BSD: Tensor | None = None,
        turns: tuple[Tensor, Tensor] | None = None,
        columns_BM: Tensor | None = None,
    ) -> Tensor:
        """Where each head looks: the softmax that `forward` never writes to memory, (B, H, L, S). For the eye."""
        q_BHLK = self._queries(x_BLD, turns, columns_BM)
        k_BHSK, _ = self._keys_and_values(x_BLD, memory_BSD, turns, None)
        return plain_attention.weights(q_BHLK, k_BHSK, visibility.score_mask, visibility.causal, self.scale)

    def _queries(self, x_BLD: Tensor, turns: tuple[Tensor, Tensor] | None, columns_BM: Tensor | None) -> Tensor:
        if columns_BM is not None:
            x_BLD = columns(x_BLD, columns_BM)
            turns = None if turns is None else (turns[0][columns_BM], turns[1][columns_BM])
        return self._prepared(self._split(self.query(x_BLD), self.heads), self.query_norm, turns)

    def _keys_and_values(
        self,
        x_BLD: Tensor,
        memory_BSD: Tensor | None,
        turns: tuple[Tensor, Tensor] | None,
        cache: KeyValueCache | None,
    ) -> tuple[Tensor, Tensor]:
        if memory_BSD is not None and cache is not None and cache.key_BHLK is not None:
            assert cache.value_BHLK is not None
            return cache.key_BHLK, cache.value_BHLK
        k_BSD, v_BSD = self.key_value(x_BLD if memory_BSD is None else memory_BSD).chunk(2, dim=-1)
        k_BHSK = self._prepared(self._split(k_BSD, self.groups), self.key_norm, turns)
        v_BHSK = self._split(v_BSD, self.groups).transpose(1, 2)
        if cache is not None:
            return cache.extend(k_BHSK, v_BHSK)
        return k_BHSK, v_BHSK

    def _attend(self, q_BHLK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, visibility: Visibility) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        apart, queries, keys = visibility.apart, q_BHLK.shape[2], v_BHSK.shape[2]
        plain = self.same_shapes and apart is None and not dropout
        if plain and plain_attention.is_faster(v_BHSK, queries, keys):
            seen, causal = visibility.score_mask, visibility.causal
            return plain_attention.attention(q_BHLK, k_BHSK, v_BHSK, seen, causal, self.scale)
        if _is_slow_in_half(v_BHSK) and (apart is not None or queries * keys <= plain_attention.MOST_PAIRS):
            with torch.autocast("cpu", enabled=False):
                out_BHLK = self._attend(q_BHLK.float(), k_BHSK.float(), v_BHSK.float(), visibility)
            return out_BHLK.to(v_BHSK.dtype)
        if apart is not None:
            return apart.attend(q_BHLK, k_BHSK, v_BHSK, self._attend)
        grouped = self.groups != self.heads
        if visibility.blocks is not None:
            bias_BHLS = visibility.bias_BHLS

            def add_bias(score: Tensor, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
                return score if bias_BHLS is None else score + bias_BHLS[0, head, query, key]

            return _flex_attention(q_BHLK.is_cuda)(
                q_BHLK,
                k_BHSK,
                v_BHSK,
                score_mod=None if bias_BHLS is None else add_bias,
                block_mask=visibility.blocks,
                scale=self.scale,
                enable_gqa=grouped,
            )
        mask = visibility.score_mask
        if grouped and mask is not None and q_BHLK.is_cuda:  # CUDA's fused kernels take groups, or a mask, not both
            k_BHSK, v_BHSK = (x.repeat_interleave(self.heads // self.groups, dim=1) for x in (k_BHSK, v_BHSK))
            grouped = False
        return functional.scaled_dot_product_attention(
            q_BHLK,
            k_BHSK,
            v_BHSK,
            attn_mask=None if mask is None else mask.to(q_BHLK.dtype) if mask.is_floating_point() else mask,
            dropout_p=dropout,
            is_causal=visibility.causal,
            scale=self.scale,
            enable_gqa=grouped,
        )

    def _prepared(self, x_BLHK: Tensor, norm: nn.Module | None, turns: tuple[Tensor, Tensor] | None) -> Tensor:
        """Queries or keys as attention takes them, (B, H, L, K): normalised and turned as they lie in memory."""
        if norm is not None:
            x_BLHK = norm(x_BLHK)
        if turns is not None:
            cos, sin = turns  # (L, K), or (B, L, K)
            x_BLHK = rotate(x_BLHK, (cos.unsqueeze(-2), sin.unsqueeze(-2)))
        return x_BLHK.transpose(1, 2)

    def _split(self, x_BLD: Tensor, heads: int) -> Tensor:
        """(B, L, H·K) → (B, L, H, K)."""
        return x_BLD.view(*x_BLD.shape[:2], heads, x_BLD.shape[2] // heads)


def expect_same_shapes(model: nn.Module, on: bool) -> None:
    """Whether the batches that are to come all have one shape, which a CPU with matrix units learns faster
    (`plain_attention`), and for which no rows need to be filled up (`matrix_units`)."""
    for module in model.modules():
        if isinstance(module, Attention | Linear):
            module.same_shapes = on


def _is_slow_in_half(v_BHSK: Tensor) -> bool:
    """Whether a CPU is to learn in bfloat16: the kernel's gradient pays for each head and block of 32 queries then."""
    return v_BHSK.dtype == torch.bfloat16 and v_BHSK.device.type == "cpu" and learns(v_BHSK)


def columns(x_BLD: Tensor, columns_BM: Tensor) -> Tensor:
    """Those columns of each row, (B, M, D)."""
    rows, length, width = x_BLD.shape
    place_BM = columns_BM + torch.arange(rows, device=x_BLD.device)[:, None] * length
    return x_BLD.reshape(-1, width).index_select(0, place_BM.flatten()).view(rows, -1, width)


def _flex_attention(on_gpu: bool) -> Any:
    """Torch's flex attention; only compiled does it skip hidden blocks, and only GPUs can train with that."""
    from torch.nn.attention.flex_attention import flex_attention

    by_itself = on_gpu and not torch.compiler.is_compiling()  # rather than as a part of a compiled model
    return _compiled(flex_attention) if by_itself else flex_attention


@cache
def _compiled(function: Any) -> Any:
    return torch.compile(function, dynamic=False)
