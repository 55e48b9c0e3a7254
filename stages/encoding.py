"""Texts → token ids, each word encoded once and remembered: faster than the tokenizer alone, with the same result.

A byte-level tokenizer never joins what a single space before a letter separates, so a text's ids are those of its
pieces, cut there, one after the other. A language has few words: nearly all pieces were met before. New ones are
encoded many at a time, as one text, and told apart by the space that each begins with: half the time of one by one.
Other tokenizers encode whole texts. `python -m benchmarks.tokenizing` measures it.
"""

import json
import re
from collections.abc import Iterable, Sequence
from itertools import chain, pairwise

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

_BEFORE_WORDS = re.compile(r"(?= \S)")
_SPACE = "Ġ"  # how byte-level tokenizers write it
_AT_ONCE = 256  # pieces
_REMEMBERED = 1 << 19  # pieces, some 60 MB at most; then memory starts anew
_ID = np.dtype(np.uint32)


class Encoder:
    """A tokenizer, special tokens taken for the letters that they are written with."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self.entries = tokenizer, tokenizer.get_vocab_size()
        tokenizer.encode_special_tokens = True  # a text that holds "</s>" means these letters, not the token
        cut = json.loads(tokenizer.to_str())["pre_tokenizer"] or {}
        self._by_words = cut.get("type") == "ByteLevel" and cut["use_regex"] and cut["add_prefix_space"]
        names = (tokenizer.id_to_token(number) or "" for number in range(self.entries))
        self._spaced_V = np.fromiter((name.startswith(_SPACE) for name in names), bool, self.entries)
        self._known: dict[str, bytes] = {}  # of ids

    def encode(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.uint32], list[int]]:
        """The ids of all texts, end to end, without special tokens; and how many each text has."""
        if not self._by_words:
            rows = [_bytes(ids) for ids in self._encode(texts)]
        else:
            pieces = list(map(_words, texts))
            new = set(chain.from_iterable(pieces)).difference(self._known)
            if len(self._known) + len(new) > _REMEMBERED:
                self._known.clear()
                new = set(chain.from_iterable(pieces))
            self._learn(new)
            known = self._known.__getitem__
            rows = [b"".join(map(known, words)) for words in pieces]
        return np.frombuffer(b"".join(rows), _ID), [len(row) // _ID.itemsize for row in rows]

    def _learn(self, pieces: Iterable[str]) -> None:
        """Encodes new pieces: as parts of a text those that hold no space, which begins a piece there."""
        single, others = list[str](), list[str]()
        for piece in pieces:
            (others if " " in piece else single).append(piece)
        self._known.update(zip(others, map(_bytes, self._encode([f" {piece}" for piece in others])), strict=True))
        parts = [single[start : start + _AT_ONCE] for start in range(0, len(single), _AT_ONCE)]
        for part, ids in zip(parts, self._encode([f" {' '.join(part)}" for part in parts]), strict=True):
            ids_N = np.array(ids, _ID)
            cuts = [*np.flatnonzero(self._spaced_V[ids_N]).tolist(), len(ids)]
            found = (ids_N[start:end].tobytes() for start, end in pairwise(cuts))
            self._known.update(zip(part, found, strict=True))

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]


def _bytes(ids: Sequence[int]) -> bytes:
    return np.array(ids, _ID).tobytes()


def _words(text: str) -> list[str]:
    """What stands between the spaces before words: a space goes before each piece, as the tokenizer puts it first."""
    if "  " not in text and text[-1:] != " " and text[:1] != " ":
        return text.split(" ") if text else []
    first, *others = _BEFORE_WORDS.split(text)
    return [first.removeprefix(" ")] * bool(first) + [piece[1:] for piece in others]
