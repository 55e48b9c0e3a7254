"""Decoding step by step: what is remembered between steps, and a step of several beams a row.

Beams are columns of their row at one position, not rows: the encoder's side and a prompt are held once for all of them,
and are read once. When beams branch, no key or value moves. Each stays in the column where it was computed, and a mask
says which columns a beam goes back to, so that branching costs a copy of booleans. The price is arithmetic: a beam is
scored against the columns of all beams of its row, then masked.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_modules.transformer.attention import LayerCache
from lightning_modules.transformer.masks import Visibility
from lightning_modules.transformer.stack import Stack


@dataclass
class DecodingState:
    """Caches, how many positions they hold, and what of the source is real."""

    caches: list[LayerCache]
    start: int = 0
    memory_BSD: Tensor | None = None
    real_BS: Tensor | None = None  # of the memory's columns; in a decoder, of its own
    sees_BWN: Tensor | None = None  # which cached columns each beam goes back to; None until there are several
    position_N: Tensor | None = None  # at which those columns stand

    def keep(self, rows: Tensor) -> None:
        """Keeps the given rows of the batch, in the order given."""
        if self.memory_BSD is not None and self.caches[0].cross.key_BHLK is None:  # once cached it is not read again
            self.memory_BSD = self.memory_BSD[rows]
        for cache in self.caches:
            cache.own.keep(rows)
            cache.cross.keep(rows)
        self.real_BS = None if self.real_BS is None else self.real_BS[rows]
        self.sees_BWN = None if self.sees_BWN is None else self.sees_BWN[rows]

    def branch(self, parents_BW: Tensor) -> None:
        """The next beams of each row go on from these of its present ones."""
        if self.sees_BWN is None:
            sees_BN = self.real_BS
            if sees_BN is None or self.memory_BSD is not None:
                sees_BN = torch.ones(len(parents_BW), self.start, dtype=torch.bool, device=parents_BW.device)
            self.sees_BWN, self.position_N = sees_BN[:, None], torch.arange(self.start, device=parents_BW.device)
        columns = self.sees_BWN.shape[2]
        self.sees_BWN = self.sees_BWN.gather(1, parents_BW[:, :, None].expand(-1, -1, columns))


def advance(stack: Stack, x_BWD: Tensor, state: DecodingState, memory_visibility: Visibility | None = None) -> Tensor:
    """Embeddings of the newest token of each beam, all at the next position → hidden vectors (B, W, D).

    After the first of several beams `state.branch` must have been called.
    """
    now_1 = torch.tensor([state.start], device=x_BWD.device)
    if stack.positions is not None:
        position_B1 = now_1[:, None]
        if state.memory_BSD is None and state.real_BS is not None:  # padding before a prompt counts no positions
            position_B1 = position_B1 - (~state.real_BS).sum(dim=1, keepdim=True)
        x_BWD = stack.positions(x_BWD, position_B1)
    x_BWD = stack.embedding_norm(x_BWD)
    visibility = _sight(stack, state, x_BWD, now_1)
    turns = None if stack.rotary is None else stack.rotary(now_1)
    for block, cache in zip(stack.blocks, state.caches, strict=True):
        x_BWD = block(x_BWD, visibility, turns, state.memory_BSD, memory_visibility, cache)
    state.start += 1
    return stack.norm(x_BWD)


def _sight(stack: Stack, state: DecodingState, x_BWD: Tensor, now_1: Tensor) -> Visibility:
    """What each beam may see of the cached columns and of the newest, one for each beam."""
    batch, width = x_BWD.shape[:2]
    allowed_BWN: Tensor | None = None
    if state.sees_BWN is not None and state.position_N is not None:
        itself_BWW = torch.eye(width, dtype=torch.bool, device=x_BWD.device).expand(batch, -1, -1)
        state.sees_BWN = allowed_BWN = torch.cat([state.sees_BWN, itself_BWW], dim=2)
        position_N = state.position_N = torch.cat([state.position_N, now_1.expand(width)])
    else:
        assert width == 1, "beams come from a branch"
        position_N = torch.arange(state.start + 1, device=x_BWD.device)
        if state.memory_BSD is None and state.real_BS is not None:
            state.real_BS = torch.cat([state.real_BS, state.real_BS.new_ones(batch, 1)], dim=1)
            allowed_BWN = state.real_BS[:, None]
    if stack.config.window is not None:
        near_N = now_1 - position_N < stack.config.window
        allowed_BWN = near_N[None, None] if allowed_BWN is None else allowed_BWN & near_N
    bias_BHLS = None if stack.bias is None else stack.bias(now_1, position_N)
    return Visibility(None if allowed_BWN is None else allowed_BWN[:, None], bias_BHLS)
