"""Masked language modelling and denoising: the row comes back, in the numbers asked for, words and sentences whole."""

import re
from itertools import permutations

import numpy as np
import pytest
from corruptions import FIRST_REGULAR, MASK, PAD, SENTENCE_ENDS, WORD_STARTS, denoising, masked, rows
from hypothesis import given
from hypothesis import strategies as st
from tiny import EOS

from lightning_modules.spans import Ids


def unpadded(row: Ids) -> list[int]:
    """The row without the padding at its end; there must be none elsewhere."""
    real = row[: int((row != PAD).sum())]
    assert (real != PAD).all()
    return [int(token) for token in real]


@given(
    length=st.integers(1, 60),
    count=st.integers(1, 4),
    rate=st.floats(0.01, 1.0),
    whole_words=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_masked_target_over_source_is_the_row(
    length: int, count: int, rate: float, whole_words: bool, seed: int
) -> None:
    tokens = rows(length, count, seed, separators=0.1)
    source, target = masked(rate, whole_words)(tokens, np.random.default_rng(seed))
    assert np.array_equal(np.where(target != PAD, target, source), tokens)
    budget = max(1, round(length * rate))
    for row, goal, shown in zip(tokens, target, source, strict=True):
        chosen, regular = goal != PAD, row != EOS
        assert ((shown == MASK) | (shown >= FIRST_REGULAR) | (shown == row)).all()
        if regular.any():
            assert not (chosen & ~regular).any(), "special tokens are not to be predicted"
            if not whole_words:
                assert chosen.sum() == min(budget, int(regular.sum()))
        else:
            assert chosen.sum() == 1
        if not whole_words:
            continue
        starts = WORD_STARTS[row] | ~regular
        inner = [n for n in range(1, length) if not starts[n] and row[n - 1] != EOS]
        assert all(chosen[n] == chosen[n - 1] for n in inner), "a word is chosen whole or not at all"
        words = sum(chosen[n] and n not in inner for n in range(length))
        assert chosen.sum() <= budget or words == 1


@pytest.mark.parametrize("whole_words", [False, True])
def test_of_chosen_tokens_80_percent_are_masked_10_random_and_10_left(whole_words: bool) -> None:
    regular = 20
    objective = masked(0.15, whole_words, ids=FIRST_REGULAR + regular)
    tokens = np.random.default_rng(0).integers(FIRST_REGULAR, FIRST_REGULAR + regular, (400, 200))
    source, target = objective(tokens, np.random.default_rng(1))
    chosen = target != PAD
    total = int(chosen.sum())
    assert total == 400 * 30 or (whole_words and 0.97 * 400 * 30 < total < 400 * 30)
    # A random token is the right one in one of 20 cases.
    shares = {"mask": 0.8, "other": 0.1 * 19 / 20, "same": 0.1 + 0.1 / 20}
    shown = {"mask": source == MASK, "same": source == tokens}
    shown["other"] = ~shown["mask"] & ~shown["same"]
    for name, share in shares.items():
        error = 5 * (share * (1 - share) / total) ** 0.5
        assert (shown[name] & chosen).sum() / total == pytest.approx(share, abs=error)
    others = np.bincount(source[shown["other"]] - FIRST_REGULAR, minlength=regular)
    expected = total * 0.1 * 19 / 20 / regular
    assert abs(others - expected).max() < 5 * expected**0.5
    # Each token draws for itself, also within a word: neighbours are both masked in 0.8² of the cases.
    both = chosen[:, 1:] & chosen[:, :-1]
    error = 5 * (0.64 * 0.36 / both.sum()) ** 0.5 * 3**0.5  # neighbouring pairs share a token
    assert (source == MASK)[:, 1:][both & (source == MASK)[:, :-1]].mean() == pytest.approx(0.8, abs=error)


def test_where_all_fits_all_words_are_predicted_those_beside_a_special_token_too() -> None:
    tokens = rows(60, 20, 0, separators=0.2)
    _, target = masked(1.0, whole_words=True)(tokens, np.random.default_rng(0))
    assert np.array_equal(target != PAD, tokens != EOS)


def test_every_place_is_masked_equally_often() -> None:
    _, target = masked(0.15)(rows(20, 8000, 0), np.random.default_rng(0))
    share = (target != PAD).mean(axis=0)
    assert abs(share - 0.15).max() < 5 * (0.15 * 0.85 / 8000) ** 0.5


def sentences_of(row: list[int]) -> list[str]:
    """The sentences of a row, a character a token: a run of ends closes one."""
    found = [""]
    for place, token in enumerate(row):
        ends = token == EOS or SENTENCE_ENDS[token]
        next_ends = place + 1 < len(row) and (row[place + 1] == EOS or SENTENCE_ENDS[row[place + 1]])
        found[-1] += chr(token)
        if ends and not next_ends:
            found.append("")
    return found if found[-1] else found[:-1]


@given(
    length=st.integers(1, 16),
    count=st.integers(1, 3),
    rate=st.floats(0.01, 0.99),
    mean=st.floats(1, 6),
    seed=st.integers(0, 2**32),
)
def test_a_denoising_source_is_the_rows_sentences_in_some_order_with_spans_masked(
    length: int, count: int, rate: float, mean: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    ends = (rng.random((count, length)) < 0.5) & (np.arange(length) % 4 == 3)  # at most four, and a rest
    tokens = np.where(ends, rng.choice([EOS, 107, 117], (count, length)), rng.choice([101, 102, 103], (count, length)))
    source, target = denoising(rate, mean)(tokens, rng)
    assert np.array_equal(target[:, :-1], tokens)
    assert (target[:, -1] == EOS).all()
    hidden = min(max(round(length * rate), 1), max(length - 1, 1))
    for row, padded in zip(tokens.tolist(), source, strict=True):
        *shown, last = unpadded(padded)
        assert last == EOS
        masks = shown.count(MASK)
        assert 1 <= masks <= hidden
        assert len(shown) - masks == length - hidden
        pattern = re.compile("".join(".*" if token == MASK else re.escape(chr(token)) for token in shown), re.DOTALL)
        assert any(pattern.fullmatch("".join(order)) for order in permutations(sentences_of(row)))
    assert source.shape[1] == max(len(unpadded(row)) for row in source), "no more padding than the longest row needs"


def test_a_document_that_ends_without_a_full_stop_still_ends_a_sentence() -> None:
    source, _ = denoising(0.2, 3.0)(np.tile([101, 102, EOS, 103, 104], (4000, 1)), np.random.default_rng(0))
    second_first = [row.index(103) < row.index(101) for row in source.tolist() if {101, 103} <= set(row)]
    assert len(second_first) > 2000
    assert np.mean(second_first) == pytest.approx(0.5, abs=0.05)


def test_a_long_row_is_denoised_with_the_spans_asked_for_anywhere() -> None:
    length, count, mean = 400, 600, 3.0
    tokens = np.tile(np.where(SENTENCE_ENDS[1000 : 1000 + length], 1, 1000 + np.arange(length)), (count, 1))
    source, _ = denoising(0.3, mean)(tokens, np.random.default_rng(0))
    masks = (source == MASK).sum(axis=1)
    # A row hides 120 tokens: 40 spans of mean length and half a one for the cut at the end; variance 120 / mean².
    assert masks.mean() == pytest.approx(120 / mean + 0.5, abs=4 * (120 / mean**2 / count) ** 0.5)
    assert 120 / masks.mean() == pytest.approx(mean, abs=0.1)
    # Without sentence ends nothing moves, so each place can be followed. A span is hardly ever longer than 10 tokens.
    followed = ~SENTENCE_ENDS[1000 : 1000 + length]
    shown = np.bincount(source[source >= 1000] - 1000, minlength=length) / count
    assert abs(shown - 0.7)[10:-10][followed[10:-10]].max() < 5 * (0.7 * 0.3 / count) ** 0.5
    # The first and the last token are hidden where a span of some length is the first or last of 280 + 40.5 items.
    hidden = 40.5 * (1 - np.exp(-mean)) / 320.5
    assert shown[0] == pytest.approx(1 - hidden, abs=4 * (hidden / count) ** 0.5)
    assert shown[-1] == pytest.approx(1 - hidden, abs=4 * (hidden / count) ** 0.5)
