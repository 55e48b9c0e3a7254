"""Texts → token ids, each word encoded once and remembered: faster than the tokenizer alone, with the same result.

A byte-level tokenizer never joins what a single space before a letter separates, so a text's ids are those of its
pieces, cut there, one after the other. A language has few words: nearly all pieces were met before. Other tokenizers
encode whole texts. `python -m benchmarks.tokenizing` measures it.
"""

import json
import re
from collections.abc import Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

_BEFORE_WORDS = re.compile(r"(?= \S)")
_REMEMBERED = 1 << 19  # pieces, some 100 MB at most; then memory starts anew


class Encoder:
    """A tokenizer, special tokens taken for the letters that they are written with."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self.entries = tokenizer, tokenizer.get_vocab_size()
        tokenizer.encode_special_tokens = True  # a text that holds "</s>" means these letters, not the token
        cut = json.loads(tokenizer.to_str())["pre_tokenizer"] or {}
        self._by_words = cut.get("type") == "ByteLevel" and cut["use_regex"] and cut["add_prefix_space"]
        self._known: dict[str, list[int]] = {}

    def encode(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.uint32], list[int]]:
        """The ids of all texts, end to end, without special tokens; and how many each text has."""
        if not self._by_words:
            rows = self._encode(texts)
            return _joined(rows), list(map(len, rows))
        pieces = list(map(_words, texts))
        new = set(chain.from_iterable(pieces)).difference(self._known)
        if len(self._known) + len(new) > _REMEMBERED:
            self._known.clear()
            new = set(chain.from_iterable(pieces))
        listed = list(new)
        self._known.update(zip(listed, self._encode([f" {word}" for word in listed]), strict=True))
        known = self._known.__getitem__
        rows = [list(chain.from_iterable(map(known, words))) for words in pieces]
        return _joined(rows), list(map(len, rows))

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]


def _words(text: str) -> list[str]:
    """What stands between the spaces before words: a space goes before each piece, as the tokenizer puts it first."""
    if "  " not in text and text[-1:] != " " and text[:1] != " ":
        return text.split(" ") if text else []
    first, *others = _BEFORE_WORDS.split(text)
    return [first.removeprefix(" ")] * bool(first) + [piece[1:] for piece in others]


def _joined(rows: list[list[int]]) -> npt.NDArray[np.uint32]:
    return np.fromiter(chain.from_iterable(rows), np.uint32, sum(map(len, rows)))
