"""Packing documents into rows of one length: which piece of which document stands where. Pure functions of lengths.

Best-fit-decreasing packing keeps most documents whole (Ding et al. 2024, "Fewer truncations improve language modeling",
arXiv:2404.10830). The paper leaves the end of a row empty where no document fits; here one is cut to fill it, so all
rows are full: as many rows as the text has tokens for, no padding, one shape for all batches. Costs about a microsecond
a piece, and a few passes over arrays of the text's size to lay the rows out.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]


class Pieces(NamedTuple):
    """Stretches of a text in the order in which rows hold them: one after the other they fill row after row."""

    starts_P: Ids
    sizes_P: Ids


def cut_at_rows(ends_N: Ids, length: int) -> Pieces:
    """The documents that end at `ends` (N,) of a text, as they are cut where the text itself is, every `length` tokens.

    `ends` increase; the last is the end of the text, a multiple of `length`.
    """
    ends_P = np.union1d(ends_N, np.arange(length, ends_N[-1] + 1, length))
    sizes_P = np.diff(ends_P, prepend=0)
    return Pieces(ends_P - sizes_P, sizes_P)


def best_fit(ends_N: Ids, length: int) -> Pieces:
    """The documents that end at `ends` (N,) of a text, packed into rows of `length` tokens, all of them full.

    `ends` increase; the last is the end of the text, a multiple of `length`. Documents longer than a row are first cut
    into whole rows and a rest. From the longest to the shortest, each then goes into the fullest row that has room for
    all of it; where none has, it fills the emptiest, and what is left of it waits for its turn. A row holds its pieces
    in the text's order. Where the text as it stands falls into rows with no more cuts than this, it is left so.
    """
    sizes_N = np.diff(ends_N, prepend=0)
    whole_N, rests_N = np.divmod(sizes_N, length)
    number_W = np.arange(whole_N.sum()) - np.repeat(np.cumsum(whole_N) - whole_N, whole_N)
    starts_W = np.repeat(ends_N - sizes_N, whole_N) + length * number_W

    rest = rests_N > 0
    rows_P, starts_P, sizes_P = _placed((ends_N - rests_N)[rest], rests_N[rest], length)
    order_P = np.lexsort((starts_P, rows_P))
    packed = Pieces(
        np.concatenate([starts_W, starts_P[order_P]]),
        np.concatenate([np.full_like(starts_W, length), sizes_P[order_P]]),
    )
    as_it_stands = np.count_nonzero(ends_N % length) + ends_N[-1] // length  # pieces: each ends a document or a row
    return packed if len(packed.starts_P) < as_it_stands else cut_at_rows(ends_N, length)


def _placed(starts_N: Ids, sizes_N: Ids, length: int) -> tuple[Ids, Ids, Ids]:
    """(Row, start, size) of each piece that documents shorter than a row are packed as; they fill whole rows."""
    order_N = np.argsort(sizes_N, kind="stable")
    borders = np.searchsorted(sizes_N[order_N], np.arange(1, length))
    waiting = [part.tolist() for part in np.split(starts_N[order_N], borders)]  # starts of the documents of each size
    free = int(sizes_N.sum()) // length
    rooms: list[list[int]] = [[] for _ in range(length + 1)]  # rows with so much room
    rooms[length] = list(range(free))
    there = 1 << length if free else 0  # bit n is set where a row has room for exactly n
    steps: list[tuple[int, int, int]] = []  # (size, pieces a row, rows)
    filled: list[int] = []
    placed: list[int] = []
    for size in range(length - 1, 0, -1):
        starts = waiting[size]
        while starts:
            fitting = there >> size
            if fitting:  # with a piece in it, the row has the least room of those that fit, and takes the next as well
                room, taken = size + (fitting & -fitting).bit_length() - 1, size
                count = min(room // size, len(starts))
                rows = min(len(rooms[room]), len(starts) // count)  # for so many the same choice comes again
            else:
                room = taken = there.bit_length() - 1
                count = rows = 1
                waiting[size - taken].append(starts[-1] + taken)
            steps.append((taken, count, rows))
            filled += rooms[room][-rows:]
            del rooms[room][-rows:]
            if not rooms[room]:
                there ^= 1 << room
            left = room - taken * count
            if left:
                rooms[left] += filled[: -rows - 1 : -1]
                there |= 1 << left
            placed += starts[-count * rows :]
            del starts[-count * rows :]
    sizes_S, counts_S, rows_S = np.array(steps, dtype=np.int64).reshape(-1, 3).T
    rows_P = np.repeat(np.array(filled, dtype=np.int64), np.repeat(counts_S, rows_S))
    return rows_P, np.array(placed, dtype=np.int64), np.repeat(sizes_S, counts_S * rows_S)


def lay_out(text_N: npt.NDArray[Any], pieces: Pieces, length: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Rows (R, L) of a text's ids, and in each row the number, from 0, of the piece that each column belongs to."""
    starts_P, sizes_P = pieces
    places_P = np.cumsum(sizes_P) - sizes_P
    rows_P = places_P // length
    first_R = np.searchsorted(rows_P, np.arange(len(text_N) // length))
    number_P = (np.arange(len(sizes_P)) - first_R[rows_P]).astype(np.min_scalar_type(length))
    stretches = zip(starts_P.tolist(), (starts_P + sizes_P).tolist(), strict=True)
    ids_N = np.concatenate([text_N[start:end] for start, end in stretches])
    return ids_N.reshape(-1, length), np.repeat(number_P, sizes_P).reshape(-1, length)
