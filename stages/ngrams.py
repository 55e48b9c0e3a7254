"""Hashes of word n-grams, of many texts at once: 64 bits each, made by numpy without a loop over words.

A word is a run of letters and digits in lower case, with the marks on them (vowel signs, accents); a letter of a
script without spaces between words is one, too. Two different n-grams share a hash with a probability of about 2⁻⁶⁴.
Costs about 0.05 µs a character.
"""

import re
import unicodedata
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]
Numbers = npt.NDArray[np.int64]

# For Python's `re` a mark is of no word. Where no others of this class are left, they are told by it.
_ODD = re.compile(r"[^\w\x00-\x7f]")
_STRAY = re.compile(r"[^\w\x00-\x7f](?<![^\W_].)(?<![^\x00-\x7f].)[^\w\x00-\x7f]*")  # marks that follow no letter
_UNSPACED = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff](?<=\w)[^\w\x00-\x7f]*"
)
_BASE, _STEP = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)  # odd: they have inverses modulo 2⁶⁴
_INVERSE = np.uint64(pow(int(_BASE), -1, 2**64))


def _byte_values() -> Hashes:
    """A random number for each byte that may be part of a word, 0 for the others."""
    values = np.random.default_rng(0).integers(1, 2**64, size=256, dtype=np.uint64)
    for byte in range(128):
        if not chr(byte).isalnum():
            values[byte] = 0
    return values


_BYTE_VALUES = _byte_values()


class Words(NamedTuple):
    """Texts as words; W words, T texts, L lines."""

    hashes_W: Hashes
    texts_T: Numbers  # the first word of each text; one entry more: W
    lines_L: Numbers  # the first word of each line; one entry more: W


def words(texts: Sequence[str]) -> Words:
    """The words of texts, in order."""
    lines = [text.split("\n") for text in texts]
    parts = [_plain(line).encode("utf-8", "replace") for of_text in lines for line in of_text]
    buffer_C = np.frombuffer(b"\n".join([*parts, b""]), dtype=np.uint8)
    values_C = _BYTE_VALUES[buffer_C]
    inside_C = values_C != 0
    starts_W = np.flatnonzero(inside_C & ~np.concatenate(([False], inside_C[:-1])))
    ends_L = np.cumsum([0, *(len(part) + 1 for part in parts)])
    lines_L = np.searchsorted(starts_W, ends_L)
    texts_T = lines_L[np.cumsum([0, *map(len, lines)])]
    if not len(starts_W):
        return Words(np.zeros(0, np.uint64), texts_T, lines_L)
    # Σ value · BASEⁱ over a word's bytes, i counted from the word's start, which the inverse takes off.
    sums_W = np.add.reduceat(values_C * _powers(_BASE, len(values_C)), starts_W)
    return Words(_mixed(sums_W * _powers(_INVERSE, len(values_C))[starts_W]), texts_T, lines_L)


def ngrams(found: Words, n: int) -> tuple[Hashes, Numbers]:
    """Each n-gram of each text that has `n` words or more: its hash, and the number of its text."""
    count = len(found.hashes_W) - n + 1
    if count <= 0:
        return np.zeros(0, np.uint64), np.zeros(0, np.int64)
    text_W = _owners(found.texts_T)
    inside = text_W[:count] == text_W[n - 1 :]
    sums = np.zeros(count, np.uint64)
    for place, factor in enumerate(_powers(_STEP, n)):
        sums += found.hashes_W[place : place + count] * factor
    return _mixed(sums[inside]), text_W[:count][inside]


def short_units(found: Words, bounds: Numbers, n: int) -> tuple[Hashes, Numbers]:
    """Each unit of 1 to `n` - 1 words as a whole: its hash, and its number. `bounds`: the texts_T or the lines_L."""
    lengths = np.diff(bounds)
    short = np.flatnonzero((lengths > 0) & (lengths < n))
    if not len(short):
        return np.zeros(0, np.uint64), short
    place_W = np.arange(len(found.hashes_W)) - np.repeat(bounds[:-1], lengths)
    terms_W = found.hashes_W * _powers(_STEP, n)[np.minimum(place_W, n - 1)]
    sums_W = np.concatenate(([np.uint64(0)], np.cumsum(terms_W)))
    return _mixed(sums_W[bounds[short + 1]] - sums_W[bounds[short]]), short


def parted(text: str) -> str:
    """The text with a space for each character beyond ASCII that is of no word: all that is left beyond ASCII is.

    A mark is of a word where it follows a letter or digit. What selects a glyph (as for emoji) is left out.
    """
    if text.isascii():
        return text
    instead = {character: _instead(character) for character in set(_ODD.findall(text))}
    for character, other in instead.items():
        text = text.replace(character, other)
    return _STRAY.sub(" ", text) if any(map(str.strip, instead.values())) else text


@cache
def _instead(character: str) -> str:
    """A mark itself, a space for what parts words."""
    if unicodedata.name(character, "").startswith("VARIATION SELECTOR"):
        return ""
    return character if unicodedata.category(character)[0] == "M" else " "


def _plain(text: str) -> str:
    text = text.lower()
    return text if text.isascii() else _UNSPACED.sub(r" \g<0> ", parted(text))


def _owners(bounds: Numbers) -> Numbers:
    """The number of the unit that each word is of."""
    return np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))


def _powers(base: np.uint64, count: int) -> Hashes:
    """base⁰, base¹, … modulo 2⁶⁴, `count` of them."""
    return _power_table(int(base), 1 << max(0, count - 1).bit_length())[:count]


@lru_cache(maxsize=4)
def _power_table(base: int, count: int) -> Hashes:
    table = np.full(count, base, dtype=np.uint64)
    table[0] = 1
    return np.multiply.accumulate(table)


def _mixed(values: Hashes) -> Hashes:
    """Every bit of the result depends on every bit of the value (the finalizer of SplitMix64, Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
