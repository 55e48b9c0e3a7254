"""A stack of blocks with its positions and last normalisation: the encoder's, or the decoder's."""

from collections.abc import Callable
from functools import cache
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_modules.transformer import plain_attention
from lightning_modules.transformer.apart import apart
from lightning_modules.transformer.attention import LayerCache
from lightning_modules.transformer.config import TransformerConfig
from lightning_modules.transformer.dropout import dropout
from lightning_modules.transformer.layers import Block, make_norm
from lightning_modules.transformer.masks import Visibility, document_blocks, may_see
from lightning_modules.transformer.positions import (
    AlibiBias,
    LearnedPositions,
    RelativeBias,
    RotaryPositions,
    SinusoidalPositions,
)

FLEX_FROM = 16  # width of a head that torch's kernel takes
FLEX_BLOCK = 128  # columns of its blocks: with others at the end its gradients can be wrong (pytorch/pytorch#153799)
APART_FROM = 256  # columns of a row from which documents one by one are faster than with a mask, on a CPU


class Stack(nn.Module):
    """Embeddings in, hidden vectors out; `causal` hides the future, `cross` lets each block see a memory."""

    def __init__(self, config: TransformerConfig, layers: int, causal: bool, cross: bool) -> None:
        super().__init__()
        self.config, self.causal = config, causal
        self.positions: SinusoidalPositions | LearnedPositions | None = None
        self.rotary: RotaryPositions | None = None
        self.bias: AlibiBias | RelativeBias | None = None
        match config.positions:
            case "sinusoidal":
                self.positions = SinusoidalPositions(config.d_model)
            case "learned":
                self.positions = LearnedPositions(config.max_length, config.d_model)
            case "rotary":
                self.rotary = RotaryPositions(config.width_of_heads, config.rotary_base, config.rotary_scaling)
            case "alibi":
                self.bias = AlibiBias(config.heads)
            case "relative":
                buckets, distance = config.relative_buckets, config.relative_distance
                self.bias = RelativeBias(config.heads, buckets, distance, bidirectional=not causal)
        self.embedding_norm = make_norm(config) if config.embedding_norm else nn.Identity()
        self.blocks = nn.ModuleList(Block(config, cross) for _ in range(layers))
        # Before-the-part normalisation leaves the sum of all layers unnormalised: the stack ends with one more.
        self.norm = make_norm(config) if config.norm == "pre" else nn.Identity()
        self.packs_with: Literal["mask", "flex", "apart"] | None = None  # None: what is fastest for device and length
        self.recompute = False

    def forward(
        self,
        x_BLD: Tensor,
        *,
        real_BS: Tensor | None = None,
        documents_BL: Tensor | None = None,
        prefix: int = 0,
        memory_BSD: Tensor | None = None,
        memory_visibility: Visibility | None = None,
        caches: list[LayerCache] | None = None,
        start: int = 0,
        columns_BM: Tensor | None = None,
    ) -> Tensor:
        """(B, L, D) → (B, L, D), or (B, M, D) of the given `columns`: of the others the last layer computes keys and
        values alone.

        With `caches`, x are the columns from `start` on, and `real` covers the earlier ones too. Raises ValueError
        where learned positions end before the sequence does.
        """
        end = start + x_BLD.shape[1]
        if self.positions is not None:
            if self.config.positions == "learned" and end > self.config.max_length:
                raise ValueError(
                    f"a sequence of {end} tokens is longer than model.max_length ({self.config.max_length}), where its "
                    "learned positions end"
                )
            positions_BL = _positions(start, end, real_BS, documents_BL, x_BLD.device)
            x_BLD = self.positions(x_BLD, positions_BL)
        x_BLD = self.embedding_norm(x_BLD)
        if self.training:
            x_BLD = dropout(x_BLD, self.config.dropout)
        bias_BHLS = None
        if self.bias is not None:
            key_S = torch.arange(end, device=x_BLD.device)
            bias_BHLS = self.bias(key_S[start:], key_S)
        visibility = of_last = self._visibility(x_BLD, start, real_BS, documents_BL, prefix, bias_BHLS)
        if columns_BM is not None:
            of_last = self._visibility_of(columns_BM, end, real_BS, documents_BL, prefix, bias_BHLS)
        turns = None if self.rotary is None else self.rotary(torch.arange(start, end, device=x_BLD.device))
        recompute = self.recompute and self.training and torch.is_grad_enabled() and caches is None
        for number, block in enumerate(self.blocks):
            last, cache = block is self.last, None if caches is None else caches[number]
            sees, asked_BM = (of_last, columns_BM) if last else (visibility, None)
            given = (x_BLD, sees, turns, memory_BSD, memory_visibility, cache, asked_BM)
            x_BLD = checkpoint(block, *given, use_reentrant=False) if recompute else block(*given)  # type: ignore[no-untyped-call]
        return self.norm(x_BLD)

    @property
    def last(self) -> Block:
        """The block on top."""
        return cast(Block, self.blocks[-1])

    def _visibility(
        self,
        x_BLD: Tensor,
        start: int,
        real_BS: Tensor | None,
        documents_BL: Tensor | None,
        prefix: int,
        bias_BHLS: Tensor | None,
    ) -> Visibility:
        new, device, window = x_BLD.shape[1], x_BLD.device, self.config.window
        causal = self.causal and new > 1  # the newest column sees all of the past anyway
        nothing_else = window is None and real_BS is None and documents_BL is None and bias_BHLS is None
        if causal and not start and not prefix and nothing_else:
            return Visibility(causal=True)
        way = None if documents_BL is None else self._packing(x_BLD, new)
        if documents_BL is not None and way == "apart" and not prefix and not start:

            def see(queries: int, keys: int, real_NS: Tensor | None) -> Visibility:
                if causal and bias_BHLS is None and window is None:
                    return Visibility(causal=True)
                allowed = may_see(queries, keys, device, causal=causal, window=window, real_BS=real_NS)
                return Visibility(allowed, None if bias_BHLS is None else bias_BHLS[..., :queries, :keys])

            return Visibility(apart=apart(documents_BL, documents_BL, real_BS, real_BS, see))
        plain = real_BS is None and not prefix and not start and not self.config.attention_dropout
        if documents_BL is not None and way == "flex" and plain:
            by_itself = x_BLD.is_cuda and not torch.compiler.is_compiling()  # not in a compiled model
            make_blocks = _compiled_blocks() if by_itself else document_blocks
            return Visibility(bias_BHLS=bias_BHLS, blocks=make_blocks(documents_BL, causal, window))
        allowed_BHLS = may_see(
            new,
            start + new,
            device,
            causal=causal,
            window=window,
            real_BS=real_BS,
            prefix=prefix,
            documents=None if documents_BL is None else (documents_BL, documents_BL),
        )
        return Visibility(allowed_BHLS, bias_BHLS)

    def _visibility_of(
        self,
        columns_BM: Tensor,
        keys: int,
        real_BS: Tensor | None,
        documents_BL: Tensor | None,
        prefix: int,
        bias_BHLS: Tensor | None,
    ) -> Visibility:
        """The same of single columns: always a mask, which is small where they are few."""
        device = columns_BM.device
        bias_BHMS = None if bias_BHLS is None else bias_BHLS[0, :, columns_BM].transpose(0, 1)
        documents = None if documents_BL is None else (documents_BL.gather(1, columns_BM), documents_BL)
        allowed_BHMS = may_see(
            columns_BM,
            keys,
            device,
            causal=self.causal,
            window=self.config.window,
            real_BS=real_BS,
            prefix=prefix,
            documents=documents,
        )
        return Visibility(allowed_BHMS, bias_BHMS)

    def sees_of_memory(
        self, x_BTD: Tensor, memory_BSD: Tensor, documents: tuple[Tensor, Tensor], real_BS: Tensor | None
    ) -> Visibility:
        """What of the memory the cross-attention of packed rows may see, by the documents of source and target."""
        of_source_BS, of_target_BT = documents
        queries, keys, device = x_BTD.shape[1], memory_BSD.shape[1], x_BTD.device
        if self._packing(x_BTD, max(queries, keys)) == "apart":

            def see(queries: int, keys: int, real_NS: Tensor | None) -> Visibility:
                return Visibility(may_see(queries, keys, device, real_BS=real_NS))

            return Visibility(apart=apart(of_target_BT, of_source_BS, None, real_BS, see))
        return Visibility(may_see(queries, keys, device, real_BS=real_BS, documents=(of_target_BT, of_source_BS)))

    def _packing(self, x_BLD: Tensor, columns: int) -> str:
        if self.packs_with is not None:
            return self.packs_with
        if x_BLD.is_cuda:
            # Nor is the gradient of a learned bias trusted to it.
            whole, wide = columns % FLEX_BLOCK == 0, self.config.width_of_heads >= FLEX_FROM
            return "flex" if whole and wide and self.config.positions != "relative" else "mask"
        if columns < APART_FROM or torch.compiler.is_compiling():
            return "mask"
        whole = self.last.attention.same_shapes and plain_attention.is_faster(x_BLD, columns, columns)
        return "mask" if whole else "apart"


@cache
def _compiled_blocks() -> Callable[[Tensor, bool, int | None], Any]:
    return torch.compile(document_blocks, dynamic=False)  # lengths left open have made it fail: pytorch/pytorch#166070


def recompute_activations(model: nn.Module, on: bool) -> None:
    """Whether training keeps nothing of a block but its input, and computes it once more in the backward pass.

    A third more arithmetic in the stacks, for memory that hardly grows with their depth (Chen et al. 2016,
    arXiv:1604.06174, section 4). Dropout is drawn the same again: losses and gradients do not change.
    """
    for module in model.modules():
        if isinstance(module, Stack):
            module.recompute = on


def _positions(
    start: int, end: int, real_BS: Tensor | None, documents_BL: Tensor | None, device: torch.device
) -> Tensor:
    """Positions (B or 1, L) of the columns from `start` on: counted in each document, padding left out."""
    if documents_BL is not None:
        column_L = torch.arange(end, device=device)
        first_BL = torch.ones_like(documents_BL, dtype=torch.bool)
        first_BL[:, 1:] = documents_BL[:, 1:] != documents_BL[:, :-1]
        return column_L - (column_L * first_BL).cummax(dim=1).values
    if real_BS is not None:
        return (real_BS.long().cumsum(dim=1) - 1).clamp(min=0)[:, start:]
    return torch.arange(start, end, device=device)[None]
