"""Near-duplicates: against brute force, and found as often as the theory of MinHash and its bands says."""

import random
import re
from collections.abc import Sequence
from functools import cache
from itertools import combinations
from math import ceil
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest
from datasketch import MinHash
from hypothesis import given, settings
from hypothesis import strategies as st
from prepared_texts import write

from stages import near_duplicates
from stages.near_duplicates import HASHES, RECALL, WORDS, nearest_kept, rows_of_band, sign, similarity

THRESHOLD = 0.8
PARAGRAPHS = [
    found for _, text in sorted(topics.items()) for found in re.split(r"\n\s*\n", text) if len(found.split()) > 40
]


@cache
def grams(text: str) -> set[tuple[str, ...]]:
    words = "".join(letter if letter.isalnum() else " " for letter in text.lower()).split()
    return {tuple(words[start : start + WORDS]) for start in range(len(words) - WORDS + 1)} or {tuple(words)}


def jaccard(one: str, other: str) -> float:
    return len(grams(one) & grams(other)) / len(grams(one) | grams(other))


def nearest(folder: Path, *splits: Sequence[str], threshold: float = THRESHOLD, workers: int = 1) -> list[int]:
    """What stays in the stead of each of the texts, which are written to a file a split."""
    files = []
    for number, texts in enumerate(splits):
        write(folder, "pretraining", f"split{number}", [(text,) for text in texts], row_group=50)
        files.append(folder / "pretraining" / f"split{number}.parquet")
    return nearest_kept(files, threshold, workers, folder).tolist()  # type: ignore[no-any-return]


def mutated(text: str, draw: random.Random) -> str:
    """Some of its words are others, added or gone."""
    words = text.split()
    for _ in range(draw.randint(0, 6)):
        place = draw.randrange(len(words))
        words[place : place + draw.randint(0, 1)] = ["other"] * draw.randint(0, 1)
    return " ".join(words)


@pytest.fixture(scope="module")
def corpus() -> list[str]:
    """Families of texts, each member a mutation of another: near-duplicates, chains of them, and others."""
    draw = random.Random(3)
    texts = []
    for paragraph in PARAGRAPHS[:40]:
        family = [paragraph]
        family += [mutated(draw.choice(family), draw) for _ in range(draw.randint(0, 9))]
        texts += family
    draw.shuffle(texts)
    return texts


def test_what_goes_is_like_what_stays_and_nothing_that_stays_is_like_another(corpus: list[str], tmp_path: Path) -> None:
    kept = nearest(tmp_path, corpus[:60], corpus[60:])
    for late, early in enumerate(kept):
        if early >= 0:
            assert early < late
            assert kept[early] < 0, "what a text goes for stays itself"
            assert jaccard(corpus[early], corpus[late]) > THRESHOLD - 0.18  # five standard deviations of the estimate
    staying = [number for number, early in enumerate(kept) if early < 0]
    alike = [jaccard(corpus[one], corpus[other]) for one, other in combinations(staying, 2)]
    assert max(alike) < THRESHOLD + 0.13
    assert 50 < len(staying) < len(corpus) - 50
    certain = [
        (one, other) for one, other in combinations(range(len(corpus)), 2) if grams(corpus[one]) == grams(corpus[other])
    ]
    assert len(certain) > 5
    assert all(kept[other] >= 0 for _, other in certain)


def test_workers_change_nothing(corpus: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = nearest(tmp_path / "1", corpus[:60], corpus[60:])
    monkeypatch.setattr(near_duplicates, "WORTH", 1)
    assert nearest(tmp_path / "2", corpus[:60], corpus[60:], workers=2) == alone
    assert sum(early >= 60 for early in alone), "both files hold texts that others go for"
    assert [path.name for path in (tmp_path / "2").iterdir()] == ["pretraining"], "nothing is left behind"


def probability(similar: float, threshold: float) -> float:
    """That two texts' signatures agree in a whole band and in a share of `threshold` of all values."""
    rows, equal = rows_of_band(threshold), ceil(threshold * HASHES - 1e-9)
    bands, spare = HASHES // rows, HASHES % rows

    def equal_values(count: int) -> np.ndarray:  # the probabilities of 0, 1, … equal values of so many
        counts = np.array([1.0])
        for _ in range(count):
            counts = np.convolve(counts, [1 - similar, similar])
        return counts

    no_band = np.array([1.0])
    for _ in range(bands):
        no_band = np.convolve(no_band, equal_values(rows)[:-1])
    no_band = np.convolve(no_band, equal_values(spare))
    return float(equal_values(HASHES)[equal:].sum() - no_band[equal:].sum())


PAIRS = 400


@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_pairs_are_found_as_often_as_theory_says(threshold: float, tmp_path: Path) -> None:
    texts, expected = [], []
    steps = [(shared, 40 - shared) for shared in (12, 16, 20, 24, 28, 30, 32, 34, 36, 38)]
    for shared, own in steps:  # of 40 n-grams; each text of a pair has half of the rest
        for pair in range(PAIRS):
            words = [f"s{shared}p{pair}w{number}" for number in range(shared + WORDS - 1)]
            assert own % 2 == 0
            texts += [" ".join([*words, *(f"{word}{side}" for word in words[: own // 2])]) for side in "ab"]
        assert jaccard(*texts[-2:]) == shared / 40 == pytest.approx(similarity(*texts[-2:]))
        expected.append(probability(shared / 40, threshold))
    kept = np.array(nearest(tmp_path, texts, threshold=threshold))
    assert set((np.arange(len(texts)) - kept)[kept >= 0].tolist()) == {1}, (
        "only a pair's second text goes, for its first"
    )
    found = (kept[1::2].reshape(len(steps), PAIRS) >= 0).mean(axis=1)
    deviation = np.sqrt(np.array(expected) * (1 - np.array(expected)) / PAIRS)
    assert np.all(np.abs(found - expected) <= 4.5 * deviation + 0.003)
    assert expected[0] < 0.05
    assert expected[-1] > 0.98


def test_estimates_are_as_exact_as_those_of_datasketch() -> None:
    """Over pairs of real texts: no bias, and the same mean error."""
    draw = random.Random(5)
    texts = PARAGRAPHS[:300]
    texts += [mutated(text, draw) for text in texts]
    ours = sign(texts, [str(number) for number in range(len(texts))])
    theirs = MinHash.bulk([["\x1f".join(gram).encode() for gram in grams(text)] for text in texts], num_perm=HASHES)
    errors = []
    for one, other in zip(range(300), range(300, 600), strict=True):
        true = jaccard(texts[one], texts[other])
        if true < 1:
            errors.append(((ours[one] == ours[other]).mean() - true, theirs[one].jaccard(theirs[other]) - true))
    mean, spread = np.mean(errors, axis=0), np.std(errors, axis=0)
    assert len(errors) > 200
    assert mean == pytest.approx([0, 0], abs=0.01)
    assert spread[0] == pytest.approx(spread[1], rel=0.2)


@given(st.floats(0.05, 1.0))
def test_bands_find_what_is_as_similar_as_the_threshold(threshold: float) -> None:
    rows = rows_of_band(threshold)
    assert 1 - (1 - threshold**rows) ** (HASHES // rows) >= RECALL
    assert rows == HASHES or 1 - (1 - threshold ** (rows + 1)) ** (HASHES // (rows + 1)) < RECALL


TEXTS = st.lists(
    st.lists(st.sampled_from(["a", "B", "b.", "c", "—", "我们"]), max_size=7).map(" ".join), min_size=2, max_size=2
)


@settings(max_examples=200)
@given(TEXTS)
def test_similarity_is_that_of_the_sets(texts: list[str]) -> None:
    spaced = [text.replace("我们", "我 们") for text in texts]  # of a script without spaces each character is a word
    expected = jaccard(*spaced) if any(grams(text) != {()} for text in spaced) else 0.0
    assert similarity(*texts) == pytest.approx(expected if {()} not in map(grams, spaced) else 0.0)


def test_short_texts_count_as_a_whole_and_texts_without_words_are_like_no_other(tmp_path: Path) -> None:
    texts = ["Press the key", "…!", "press the key!", "press the other key", "…?", "", "Press\nthe key"]
    assert nearest(tmp_path, texts) == [-1, -1, 0, -1, -1, -1, 0]


def test_at_threshold_one_only_equal_sets_go(tmp_path: Path) -> None:
    text = " ".join(PARAGRAPHS[:10])
    almost = f"{text} indeed"
    assert jaccard(text, almost) > 0.99
    assert nearest(tmp_path, [text, almost, text.upper()], threshold=1.0) == [-1, -1, 0]


def test_a_frame_around_many_contents_costs_few_comparisons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw, compared = random.Random(8), 0
    frame, count, copies = " ".join(f"frame{number}" for number in range(100)), 3000, 40
    texts = [f"{frame} {' '.join(str(draw.randrange(10**9)) for _ in range(15))}" for _ in range(count)]
    texts += [f"{text} more" for text in texts[:copies]]
    assert jaccard(texts[0], texts[1]) < 0.8 < 0.98 < jaccard(texts[0], texts[count])

    def counted(signatures: np.ndarray, late: np.ndarray, early: np.ndarray) -> np.ndarray:
        nonlocal compared
        compared += len(late)
        return equal(signatures, late, early)

    equal = near_duplicates._equal
    monkeypatch.setattr(near_duplicates, "_equal", counted)
    kept = nearest(tmp_path, texts, threshold=0.9)
    assert sum(kept[count + number] == number for number in range(copies)) >= copies - 1
    assert sum(early >= 0 for early in kept[:count]) < 10  # an estimate that is four deviations off
    bands = HASHES // rows_of_band(0.9)
    assert compared < bands * len(texts) * near_duplicates.ROUNDS / 2


def test_the_end_of_a_chain_stays(tmp_path: Path) -> None:
    words = [f"word{number}" for number in range(335)]
    chain = [" ".join(words[start : start + 200]) for start in (0, 45, 90, 135)]
    assert jaccard(chain[0], chain[1]) > 0.62 > 0.38 > jaccard(chain[0], chain[2])
    assert nearest(tmp_path, chain, threshold=0.5) == [-1, 0, -1, 2]
