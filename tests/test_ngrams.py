"""Hashes of n-grams are equal where the words are, and nowhere else: against a loop over characters."""

import random
import re
import unicodedata
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stages.metrics import _words
from stages.ngrams import ngrams, short_units, words

LETTERS = "abcAB 12_-\n\t.'äÄßé“ 我们คΩ²"
MARKS = "\u0301\u0e35\u0e48\u093f\u094d\u20e3\ufe0f❤हन"
UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
TEXT = st.text(st.sampled_from(LETTERS), max_size=40) | st.text(st.sampled_from(LETTERS + MARKS)) | st.text(max_size=15)


def reference_words(text: str) -> list[str]:
    found, word, unspaced = [], "", False
    for character in text.lower():
        if unicodedata.name(character, "").startswith("VARIATION SELECTOR"):
            continue
        if character.isalnum():
            alone = UNSPACED.match(character)
            if alone or unspaced:
                found, word = [*found, word], ""
            word, unspaced = word + character, alone is not None
        elif word and unicodedata.category(character)[0] == "M":
            word += character
        else:
            found, word, unspaced = [*found, word], "", False
    return [one for one in [*found, word] if one]


def cut_at_marks(text: str) -> list[str]:
    """The words as they were before marks were of them: of text without marks they must stay what they are."""
    spaced = UNSPACED.sub(r" \g<0> ", text.lower())
    return re.sub(r"[\W_]+", " ", spaced).split()


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


@settings(max_examples=300)
@given(TEXT)
@example("Straße “naïve” – ½ x² 日本語の文、です。ไทย 한국어 Ёлка №2")
def test_text_without_marks_has_the_words_that_it_had(text: str) -> None:
    whole = "".join(c for c in unicodedata.normalize("NFC", text) if unicodedata.category(c.lower()[-1])[0] != "M")
    assert reference_words(whole) == cut_at_marks(whole)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("हिन्दी में लिखा हुआ एक वाक्य", 6),
        ("বাংলা ভাষায় লেখা একটি বাক্য", 5),
        ("தமிழில் எழுதப்பட்ட ஒரு வாக்கியம்", 4),
        ("בְּרֵאשִׁית בָּרָא", 2),
        ("كِتَابٌ جَدِيدٌ", 2),
        ("cafe\u0301 x\u0302", 2),
        ("ที่ดี", 2),
        ("❤️ yes ✔️ \u0301", 1),
    ],
)
def test_a_mark_is_of_its_letters_word(text: str, count: int) -> None:
    assert len(words([text]).hashes_W) == count


def test_another_vowel_sign_is_another_word() -> None:
    hashes = words(["की का के क कु कू"]).hashes_W
    assert len(set(hashes.tolist())) == 6
    assert words(["葛\U000e0100飾"]).hashes_W.tolist() == words(["葛飾"]).hashes_W.tolist()  # the same, drawn otherwise


def test_words_are_those_of_the_metrics() -> None:
    """stages/metrics.py has the same words of scripts with spaces between them."""
    draw = random.Random(1)
    for _ in range(200):
        drawn = draw.choices(["aé", "1", "_", "“", " ", "हि", "न्दी", "বাং", "x\u0301", "தமிழ்", ",", "।"], k=20)
        assert len(words(["".join(drawn)]).hashes_W) == len(_words("".join(drawn)))


def test_a_hundred_thousand_ngrams_have_as_many_hashes() -> None:
    numbers = [str(number) for number in range(100_000)]
    for n in (1, 3):
        hashes, _ = ngrams(words([" ".join(numbers)]), n)
        assert len(np.unique(hashes)) == len(numbers) - n + 1
        low = np.bincount((hashes & np.uint64(15)).astype(np.int64))
        high = np.bincount((hashes >> np.uint64(60)).astype(np.int64))
        for counts in (low, high):  # the first bits index a table: they must spread as well as the last
            assert counts / len(hashes) == pytest.approx(np.full(16, 1 / 16), abs=0.004)
