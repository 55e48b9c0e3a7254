"""Texts → token ids, each piece of a word encoded once and remembered: faster than the tokenizer, the same result.

A byte-level tokenizer never joins a word with the space before the next, nor letters, digits and marks with each
other, so a text's ids are those of its pieces, cut there, one after the other. A language has few of them: Arrow
numbers the distinct pieces of some thousand texts, those that are new are encoded, and Arrow puts the ids where the
numbers stand. Python meets each new piece, and no other. New ones are encoded many at a time, as one text, and told
apart by the space that each begins with: half the time of one by one. Other tokenizers encode whole texts. Memory:
_REMEMBERED, and some 30 times _PART. `python -m benchmarks.tokenizing` measures it.
"""

from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

_SPACE = "Ġ"  # how byte-level tokenizers write it
_AT_ONCE = 256  # pieces
_PART = 1 << 20  # characters: texts are taken together up to about so many
_REMEMBERED = 1 << 24  # bytes; then memory starts anew
_ID = np.dtype(np.uint32)
_WHITE_SPACE = [chr(code).encode() for code in range(0x1000, 0x4000) if chr(code).isspace()]  # three bytes each
Ids = npt.NDArray[np.uint32]
Bytes = npt.NDArray[np.uint8]
Places = npt.NDArray[np.int64]


# By byte, what kinds of characters no token joins: letters 1, digits 2, marks 3, white space but " " 4; 0: unknown.
_BEHIND = np.zeros(256, np.uint8)
for _code in range(0x21, 0x7F):
    _BEHIND[_code] = 1 if chr(_code).isalpha() else 2 if chr(_code).isdigit() else 3
_BEHIND[9:14] = 4
_BEFORE = np.where(_BEHIND == 4, 0, _BEHIND)  # how white space is cut depends on what follows it
_BEFORE[ord("'")] = 0  # so that 's and 'll stay whole


class Encoder:
    """A tokenizer, special tokens taken for the letters that they are written with."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self.entries = tokenizer, tokenizer.get_vocab_size()
        tokenizer.encode_special_tokens = True  # a text that holds "</s>" means these letters, not the token
        cut: Any = tokenizer.pre_tokenizer
        self._by_pieces = isinstance(cut, ByteLevel) and cut.use_regex and cut.add_prefix_space
        names = (tokenizer.id_to_token(number) or "" for number in range(self.entries))
        self._spaced_V = np.fromiter((name.startswith(_SPACE) for name in names), bool, self.entries)
        self._marks = {mark: len(ids) for mark, ids in zip(" .a", self._encode([" ", ".", "a"]), strict=True)}
        self._forget()

    def encode(self, texts: Sequence[str]) -> tuple[Ids, list[int]]:
        """The ids of all texts, end to end, without special tokens; and how many each text has."""
        if not texts:
            return np.zeros(0, _ID), []
        encode = self._encode_by_pieces if self._by_pieces else self._encode_whole
        ids, lengths = zip(*map(encode, _parts(texts)), strict=True)
        return np.concatenate(ids), list(chain.from_iterable(lengths))

    def _forget(self) -> None:
        self._pieces, self._ids = _strings([]), _strings([])

    def _encode_whole(self, texts: list[str]) -> tuple[Ids, list[int]]:
        rows = self._encode(texts)
        return np.fromiter(chain.from_iterable(rows), _ID), list(map(len, rows))

    def _encode_by_pieces(self, texts: list[str]) -> tuple[Ids, list[int]]:
        if self._pieces.nbytes + self._ids.nbytes > _REMEMBERED:
            self._forget()
        pieces, first_pieces = _pieces(texts)
        numbered: pa.DictionaryArray = pieces.dictionary_encode()
        distinct = numbered.dictionary
        known = pc.index_in(distinct, self._pieces)
        if known.null_count:
            new = distinct.filter(known.is_null())
            self._ids = pa.concat_arrays([self._ids, _strings(self._learn(new.to_pylist()))])
            self._pieces = pa.concat_arrays([self._pieces, new])
            known = pc.index_in(distinct, self._pieces)
        ends, ids = _buffers(self._ids.take(known.take(numbered.indices)))
        return ids.view(_ID), (np.diff(ends[first_pieces]) // _ID.itemsize).tolist()

    def _learn(self, pieces: list[bytes]) -> list[bytes]:
        """The ids of new pieces: as parts of a text those that are one word."""
        marked = [self._marked(piece.decode()) for piece in pieces]
        words = [number for number, (text, _) in enumerate(marked) if " " not in text[1:] and text[1:2].strip()]
        others = sorted(set(range(len(pieces))).difference(words))
        found = [b""] * len(pieces)
        for start in range(0, len(others), _AT_ONCE):
            part = others[start : start + _AT_ONCE]
            for number, ids in zip(part, self._encode([marked[number][0] for number in part]), strict=True):
                found[number] = np.array(ids[marked[number][1] :], _ID).tobytes()
        for start in range(0, len(words), _AT_ONCE):
            part = words[start : start + _AT_ONCE]
            ids_N = np.array(self._encode(["".join(marked[number][0] for number in part)])[0], _ID)
            cuts = [*np.flatnonzero(self._spaced_V[ids_N]).tolist(), len(ids_N)]
            for number, (begin, end) in zip(part, pairwise(cuts), strict=True):
                found[number] = ids_N[begin + marked[number][1] : end].tobytes()
        return found

    def _marked(self, piece: str) -> tuple[str, int]:
        """A piece behind something that it is not joined with, so that no space comes before it; tokens of that."""
        if piece.startswith(" "):
            return piece, 0
        mark = "." if piece[0].isalnum() else "a"
        return f" {mark}{piece}", self._marks[mark]

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def _parts(texts: Sequence[str]) -> Iterator[list[str]]:
    """The texts in runs of about _PART characters: what is made of them on the way stays small."""
    part = np.cumsum([len(text) for text in texts], dtype=np.int64) // _PART
    for begin, end in pairwise([0, *(np.flatnonzero(np.diff(part)) + 1).tolist(), len(texts)]):
        yield list(texts[begin:end])


def _pieces(texts: list[str]) -> tuple[pa.LargeBinaryArray, Places]:
    """The texts cut where no token can lie across; each text's first piece, and last the number of all.

    A text begins with a space, as the tokenizer puts it there.
    """
    spaced = [text.encode() if text[:1] in ("", " ") else b" " + text.encode() for text in texts]
    ends, utf8 = _buffers(_strings(spaced))
    is_end = np.zeros(len(utf8) + 1, np.bool_)
    is_end[ends] = True
    cut, before, behind = is_end.copy(), _BEFORE[utf8[:-1]], _BEHIND[utf8[1:]]
    cut[1:-1] |= (before != behind) & (before > 0) & (behind > 0)
    spaces = np.flatnonzero(utf8[:-1] == ord(" "))
    spaces = spaces[~is_end[spaces + 1]]
    cut[spaces[_begins_word(utf8, spaces + 1)]] = True
    cuts = np.flatnonzero(cut)
    pieces = pa.Array.from_buffers(pa.large_binary(), len(cuts) - 1, [None, pa.py_buffer(cuts), pa.py_buffer(utf8)])
    return pieces, np.searchsorted(cuts, ends)


def _begins_word(utf8: Bytes, at: Places) -> npt.NDArray[np.bool_]:
    """Whether no white space stands there. U+0080 to U+00BF are taken for it: not to cut is never wrong."""
    first = utf8[at]
    begins = (first > ord(" ")) & (first != 0xC2)
    doubtful = np.flatnonzero((first >= _WHITE_SPACE[0][0]) & (first <= _WHITE_SPACE[-1][0]))
    of_three = utf8[at[doubtful, None] + np.arange(3)].astype(np.int32) @ [1 << 16, 1 << 8, 1]
    begins[doubtful] = ~np.isin(of_three, [int.from_bytes(character) for character in _WHITE_SPACE])
    return begins


def _strings(strings: Sequence[bytes]) -> pa.LargeBinaryArray:
    """As an Arrow array. (`pa.array` would import pandas: 30 MB.)"""
    ends = np.cumsum([0, *map(len, strings)], dtype=np.int64)
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(b"".join(strings))]
    return pa.Array.from_buffers(pa.large_binary(), len(strings), buffers)


def _buffers(strings: pa.LargeBinaryArray) -> tuple[Places, Bytes]:
    """Where each of the strings begins, and last where they end; and their bytes."""
    _, ends, data = strings.buffers()
    return np.frombuffer(ends, np.int64, len(strings) + 1), np.frombuffer(data or b"", np.uint8)
