"""Attention of packed documents one by one: those of like length lie side by side, and nothing hidden is computed.

A mask costs as much as if all could see all; here a document of n tokens costs n², and copying each query, key and
value once to its place and each output back. Less than a mask from rows of some 256 tokens on: on two cores 0.7 of its
time at 512 tokens a row and 0.4 at 1,024 (`python -m benchmarks.attention`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_modules.transformer.masks import Visibility

LIKE = 0.85  # documents share a group while they are no shorter than this share of its longest …
SHORT = 32  # … or than so many tokens: kernels take blocks of as many queries
Attend = Callable[[Tensor, Tensor, Tensor, Visibility], Tensor]
See = Callable[[int, int, Tensor | None], Visibility]  # (queries, keys, which keys (N, S) are real if not all)


@dataclass(frozen=True)
class Moves:
    """Where the columns of rows (B·L of them) stand in the groups (M places), padding at the end of each document."""

    column_M: Tensor  # of each place; any where it is padding
    padding_P: Tensor  # the places that are padding
    place_C: Tensor  # of each column; any where it belongs to no document
    outside_O: Tensor  # the columns that belong to none
    lengths: list[tuple[int, int]]  # of each group: documents, and places of each


@dataclass(frozen=True)
class Apart:
    """Groups of documents, and what their queries may see."""

    queries: Moves
    keys: Moves
    visibilities: list[Visibility]

    def attend(self, q_BHLK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, attend: Attend) -> Tensor:
        """(B, H, L, K): `attend` group by group; zeros for columns that belong to no document."""
        queries = _grouped(q_BHLK, self.queries)
        keys, values = _grouped(k_BHSK, self.keys), _grouped(v_BHSK, self.keys)
        groups = zip(queries, keys, values, self.visibilities, strict=True)
        out_MD = torch.cat([attend(*group).transpose(1, 2).flatten(2).flatten(0, 1) for group in groups])
        out_CD = _moved(
            out_MD, self.queries.place_C, self.queries.outside_O, self.queries.column_M, self.queries.padding_P
        )
        batch, heads, columns, width = q_BHLK.shape
        return out_CD.view(batch, columns, heads, width).transpose(1, 2)


def apart(of_queries_BL: Tensor, of_keys_BS: Tensor, real_BL: Tensor | None, real_BS: Tensor | None, see: See) -> Apart:
    """Groups for rows whose columns have such numbers of documents, and of which such are real (None: all).

    A document's columns follow each other. One that has no keys sees nothing: its queries get zeros.
    """
    numbers = 1 + int(torch.maximum(of_queries_BL.max(), of_keys_BS.max()))
    start_N, length_N, document_N = _runs(of_queries_BL, real_BL, numbers)
    keys = _runs(of_keys_BS, real_BS, numbers)
    matching = {document: (start, length) for start, length, document in zip(*keys, strict=True)}
    documents = [
        ((start, length), matching.get(document, (0, 0)))
        for start, length, document in zip(start_N, length_N, document_N, strict=True)
    ]
    documents.sort(key=lambda of: of[0][1] + of[1][1], reverse=True)
    groups: list[list[tuple[tuple[int, int], tuple[int, int]]]] = []
    least = 0.0  # tokens of a document that may still join the group
    for query, key in documents:
        size = query[1] + key[1]
        if not groups or size < least:
            groups.append([])
            least = LIKE * size if size > 2 * SHORT else 0
        groups[-1].append((query, key))
    visibilities = []
    for group in groups:
        key_lengths_N = torch.tensor([key[1] for _, key in group])
        most_queries, most_keys = (max(1, *(of[side][1] for of in group)) for side in (0, 1))
        full = bool((key_lengths_N == most_keys).all())
        real_NS = None if full else torch.arange(most_keys) < key_lengths_N[:, None]
        visibilities.append(see(most_queries, most_keys, real_NS))
    queries, keys_ = ([[of[side] for of in group] for group in groups] for side in (0, 1))
    return Apart(_moves(queries, of_queries_BL.numel()), _moves(keys_, of_keys_BS.numel()), visibilities)


def _runs(documents_BL: Tensor, real_BL: Tensor | None, numbers: int) -> tuple[list[int], list[int], list[int]]:
    """Of each document: its first column of all B·L, its length, and a number that no other of the batch has.

    A row's own numbers are below `numbers`, the same for queries and keys, or they would not find each other.
    """
    rows_B1 = torch.arange(len(documents_BL))[:, None]
    number_BL = documents_BL + rows_B1 * numbers
    if real_BL is not None:
        number_BL = number_BL.masked_fill(~real_BL, -1)
    number_N, length_N = torch.unique_consecutive(number_BL, return_counts=True)
    start_N, kept_N = length_N.cumsum(0) - length_N, number_N >= 0
    return start_N[kept_N].tolist(), length_N[kept_N].tolist(), number_N[kept_N].tolist()


def _moves(groups: list[list[tuple[int, int]]], columns: int) -> Moves:
    column, lengths = [], []
    for group in groups:
        start_N1, length_N1 = torch.tensor(group)[:, :, None].unbind(dim=1)
        longest = max(1, int(length_N1.max()))
        place_L = torch.arange(longest)
        column.append(torch.where(place_L < length_N1, start_N1 + place_L, columns).flatten())
        lengths.append((len(group), longest))
    column_M = torch.cat(column)
    place_C = torch.full((columns + 1,), -1)
    place_C[column_M] = torch.arange(len(column_M))
    place_C = place_C[:-1]
    padding_P, outside_O = (column_M == columns).nonzero()[:, 0], (place_C < 0).nonzero()[:, 0]
    return Moves(column_M.clamp(max=columns - 1), padding_P, place_C.clamp(min=0), outside_O, lengths)


def _grouped(x_BHLK: Tensor, moves: Moves) -> list[Tensor]:
    """(N, H, L, K) of each group."""
    heads, width = x_BHLK.shape[1], x_BHLK.shape[3]
    x_CD = x_BHLK.transpose(1, 2).reshape(-1, heads * width)
    x_MD = _moved(x_CD, moves.column_M, moves.padding_P, moves.place_C, moves.outside_O)
    parts = torch.split(x_MD, [count * longest for count, longest in moves.lengths])
    return [
        part.view(count, longest, heads, width).transpose(1, 2)
        for part, (count, longest) in zip(parts, moves.lengths, strict=True)
    ]


def _moved(x: Tensor, source: Tensor, empty: Tensor, place: Tensor, nowhere: Tensor) -> Tensor:
    return _Moved.apply(x, source, empty, place, nowhere)  # type: ignore[no-any-return, no-untyped-call]


class _Moved(torch.autograd.Function):
    """Rows of a matrix in another order, zeros in some places; the gradient goes back the same way, without sums."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, source: Tensor, empty: Tensor, place: Tensor, nowhere: Tensor) -> Tensor:
        ctx.save_for_backward(place, nowhere)
        return x.index_select(0, source).index_fill_(0, empty, 0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        place, nowhere = ctx.saved_tensors
        return gradient.index_select(0, place).index_fill_(0, nowhere, 0), None, None, None, None
