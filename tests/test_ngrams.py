"""Hashes of n-grams are equal where the words are, and nowhere else: against a loop over characters."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stages.ngrams import ngrams, short_units, words

TEXT = st.text(st.sampled_from("abcAB 12_-\n\t.'äÄßé“ 我们คΩ²"), max_size=40) | st.text(max_size=15)


def reference_words(text: str) -> list[str]:
    found, word = [], ""
    for character in text.lower():
        if "\u3400" <= character <= "\u9fff" or "\u3040" <= character <= "\u30ff" or "\u0e00" <= character <= "\u0eff":
            found, word = [*found, word, character if character.isalnum() else ""], ""
        elif character.isalnum():
            word += character
        else:
            found, word = [*found, word], ""
    return [one for one in [*found, word] if one]


def bounds_of(units: Sequence[Sequence[str]]) -> list[int]:
    return np.cumsum([0, *map(len, units)]).tolist()


@settings(max_examples=150)
@given(st.lists(TEXT, max_size=6), st.integers(1, 4))
@example(["", " . ", "a b c", "A, b; c!", "ABC\nabc"], 3)
@example(["我们 go", "我 们 go", "x_y x y", "İ i"], 2)
def test_equal_words_and_only_they_have_equal_hashes(texts: list[str], n: int) -> None:
    units = [reference_words(text) for text in texts]
    lines = [reference_words(line) for text in texts for line in text.split("\n")]
    found = words(texts)
    assert found.texts_T.tolist() == bounds_of(units)
    assert found.lines_L.tolist() == bounds_of(lines)

    expected = [(tuple(unit[i : i + n]), number) for number, unit in enumerate(units) for i in range(len(unit) - n + 1)]
    short = [(tuple(unit), number) for number, unit in enumerate(units) if 0 < len(unit) < n]
    short_lines = [(tuple(line), number) for number, line in enumerate(lines) if 0 < len(line) < n]
    by_hash: dict[int, tuple[str, ...]] = {}
    for wanted, (hashes, owners) in (
        (expected, ngrams(found, n)),
        (short, short_units(found, found.texts_T, n)),
        (short_lines, short_units(found, found.lines_L, n)),
    ):
        assert owners.tolist() == [number for _, number in wanted]
        for (gram, _), value in zip(wanted, hashes.tolist(), strict=True):
            assert by_hash.setdefault(value, gram) == gram
    assert len(set(by_hash.values())) == len(by_hash), "equal words, different hashes"


def test_a_hundred_thousand_ngrams_have_as_many_hashes() -> None:
    numbers = [str(number) for number in range(100_000)]
    for n in (1, 3):
        hashes, _ = ngrams(words([" ".join(numbers)]), n)
        assert len(np.unique(hashes)) == len(numbers) - n + 1
        low = np.bincount((hashes & np.uint64(15)).astype(np.int64))
        high = np.bincount((hashes >> np.uint64(60)).astype(np.int64))
        for counts in (low, high):  # the first bits index a table: they must spread as well as the last
            assert counts / len(hashes) == pytest.approx(np.full(16, 1 / 16), abs=0.004)
