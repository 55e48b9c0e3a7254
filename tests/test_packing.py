"""Packing: every token once, rows full, documents whole where they can be."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_modules.packing import Pieces, best_fit, cut_at_rows, lay_out


@st.composite
def texts(draw: st.DrawFn) -> tuple[list[int], int]:
    """Lengths of documents, the last made longer to fill a number of rows, and the rows' length."""
    length = draw(st.integers(1, 24))
    sizes = draw(st.lists(st.integers(1, 3 * length), min_size=1, max_size=40))
    sizes[-1] += -sum(sizes) % length
    return sizes, length


def ends_of(sizes: list[int]) -> np.ndarray:
    return np.cumsum(np.array(sizes, dtype=np.int64))


def pieces_of(pieces: Pieces) -> list[range]:
    return [range(start, start + size) for start, size in zip(*(part.tolist() for part in pieces), strict=True)]


def cuts(pieces: Pieces, sizes: list[int]) -> int:
    return len(pieces.starts_P) - len(sizes)


def needless(pieces: Pieces, sizes: list[int], length: int) -> int:
    """Documents in several pieces though a row could hold them."""
    owner = np.searchsorted(ends_of(sizes), pieces.starts_P, side="right")
    return sum(sizes[document] <= length for document, count in Counter(owner.tolist()).items() if count > 1)


@pytest.mark.parametrize("pack", [best_fit, cut_at_rows])
@given(text=texts())
def test_every_token_stands_once_in_rows_of_one_length(pack, text: tuple[list[int], int]) -> None:  # type: ignore[no-untyped-def]
    sizes, length = text
    pieces = pieces_of(pack(ends_of(sizes), length))
    assert sorted(token for piece in pieces for token in piece) == list(range(sum(sizes)))
    assert all(pieces)
    borders = set(np.cumsum([len(piece) for piece in pieces]).tolist())
    assert borders >= set(range(length, sum(sizes) + 1, length))  # no piece goes over the end of a row
    ends = ends_of(sizes)
    for piece in pieces:
        assert np.searchsorted(ends, piece[0], side="right") == np.searchsorted(ends, piece[-1], side="right")


@given(text=texts())
def test_it_never_cuts_more_than_the_text_as_it_stands_nor_more_than_a_cut_a_row(text: tuple[list[int], int]) -> None:
    sizes, length = text
    packed, joined = (pack(ends_of(sizes), length) for pack in (best_fit, cut_at_rows))
    assert cuts(packed, sizes) <= cuts(joined, sizes)
    # A piece is cut to fill a row to its end, or because a document is longer than a row.
    unavoidable = sum((size - 1) // length for size in sizes)
    assert unavoidable <= cuts(packed, sizes) <= unavoidable + sum(sizes) // length


@given(text=texts())
def test_the_pieces_of_a_row_stand_in_the_texts_order(text: tuple[list[int], int]) -> None:
    sizes, length = text
    place, before = 0, -1
    for piece in pieces_of(best_fit(ends_of(sizes), length)):
        assert place % length == 0 or piece[0] > before
        place, before = place + len(piece), piece[0]


@pytest.mark.parametrize(("mean", "spread"), [(3.0, 0.6), (4.0, 1.0), (5.0, 1.2)])
@pytest.mark.parametrize("length", [64, 128, 256])
def test_fewer_documents_are_cut_though_they_would_fit(length: int, mean: float, spread: float) -> None:
    for seed in range(3):
        sizes = (np.random.default_rng(seed).lognormal(mean, spread, 2000).astype(int) + 1).tolist()
        sizes[-1] += -sum(sizes) % length
        packed, joined = (needless(pack(ends_of(sizes), length), sizes, length) for pack in (best_fit, cut_at_rows))
        assert packed < 0.5 * joined


def one_by_one(sizes: list[int], length: int) -> list[int]:
    """Sizes of the pieces, as best_fit's documentation says it, a document at a time."""
    pieces = [length for size in sizes for _ in range(size // length)]
    waiting = [size % length for size in sizes if size % length]
    rooms = [length] * (sum(waiting) // length)
    while waiting:
        size = max(waiting)
        room = min((room for room in rooms if room >= size), default=max(rooms))
        taken = min(size, room)
        waiting.remove(size)
        rooms.remove(room)
        waiting += [size - taken] if size > taken else []
        rooms.append(room - taken)
        pieces.append(taken)
    return pieces


@given(text=texts())
def test_documents_are_packed_as_if_one_by_one(text: tuple[list[int], int]) -> None:
    sizes, length = text
    packed, joined = (pack(ends_of(sizes), length).sizes_P.tolist() for pack in (best_fit, cut_at_rows))
    expected = one_by_one(sizes, length)
    assert Counter(packed) == Counter(expected) if len(expected) < len(joined) else packed == joined


def test_best_fit_finds_what_first_fit_in_the_texts_order_does_not() -> None:
    sizes = [3, 6, 4, 7, 5, 5]  # of 10: 7 + 3, 6 + 4, 5 + 5
    assert cuts(best_fit(ends_of(sizes), 10), sizes) == 0
    assert cuts(cut_at_rows(ends_of(sizes), 10), sizes) == 1


@given(text=texts(), seed=st.integers(0, 99))
def test_rows_hold_the_pieces_and_number_them(text: tuple[list[int], int], seed: int) -> None:
    sizes, length = text
    ids = np.random.default_rng(seed).integers(0, 60_000, sum(sizes)).astype(np.uint16)
    pieces = best_fit(ends_of(sizes), length)
    ids_RL, documents_RL = lay_out(ids, pieces, length)
    assert ids_RL.dtype == np.uint16
    row: list[int] = []
    numbers: list[int] = []
    rows = []
    for piece in pieces_of(pieces):
        numbers += [numbers[-1] + 1 if numbers else 0] * len(piece)
        row += ids[piece.start : piece.stop].tolist()
        if len(row) == length:
            rows.append((row, numbers))
            row, numbers = [], []
    assert list(zip(ids_RL.tolist(), documents_RL.tolist(), strict=True)) == rows


def test_a_row_may_hold_as_many_documents_as_tokens() -> None:
    ids = np.zeros(600, np.uint16)
    _, documents_RL = lay_out(ids, best_fit(np.arange(1, 601), 300), 300)
    assert documents_RL.tolist() == [list(range(300))] * 2
