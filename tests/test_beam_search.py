"""Beam search: the best of all texts there are, Hugging Face's tokens and scores, nothing lost by stopping early.

Most are compared in double precision: there rounding, which differs between processors, decides nothing.
"""

from typing import Any

import pytest
import torch
from searching import FAMILIES, MOST, SHAPES, Text, beams_without_end, every_text, from_hugging_face, sources, tensors
from tiny import EOS, lively, model

from lightning_modules.decoding import Decoding, decode, greedy
from lightning_modules.interop.huggingface import to_hugging_face

TINY = {"vocab_size": 6, "d_model": 16, "tied_output": False}


def searched(ours: Any, texts: list[list[int]], **options: Any) -> list[list[Text]]:
    found = decode(ours, *tensors(texts, ours), Decoding(**{"max_tokens": MOST, "beams": 5} | options))
    return [[(text.ids, text.score) for text in answers] for answers in found]


def assert_same(found: list[list[Text]], expected: list[list[Text]]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert [ids for ids, _ in ours] == [ids for ids, _ in theirs]
        assert [score for _, score in ours] == pytest.approx([score for _, score in theirs], rel=1e-5, abs=1e-4)


@pytest.mark.parametrize("shape", ["encoder-decoder", "decoder, learned", "decoder, alibi"])
def test_as_many_beams_as_texts_find_the_best_of_all_texts(shape: str) -> None:
    texts, ours = [[3, 4, 5, EOS], [5, EOS], [4, 4, 3, 5, 5, EOS]], model(**SHAPES[shape] | TINY)
    whole = [every_text(ours, text, 4) for text in texts]
    options = {"max_tokens": 4, "beams": 6 * 5**3}  # every continuation of every unfinished text of three tokens
    firsts = set()
    for penalty, stop, answers in ((-0.5, "exact", 1), (0.0, "exact", 25), (1.0, "likely", 25), (2.0, "full", 25)):
        found = searched(ours, texts, answers=answers, length_penalty=penalty, stop=stop, **options)
        scored = [[(ids, total / length**penalty) for ids, total, length in every] for every in whole]
        assert_same(found, [sorted(every, key=lambda text: -text[1])[:answers] for every in scored])
        firsts |= {tuple(row[0][0]) for row in found}
    assert len(firsts) > 1


@pytest.mark.parametrize(("family", "changes"), FAMILIES)
def test_five_hundred_sentences_come_out_as_from_hugging_face(family: str, changes: dict[str, Any]) -> None:
    ours, texts = lively(**changes), sources(500)
    theirs = to_hugging_face(ours)
    assert type(theirs).__name__.startswith(family)
    expected = from_hugging_face(theirs, texts, ours, num_beams=5)
    found = [row for start in range(0, 500, 50) for row in searched(ours, texts[start : start + 50])]
    tied = [place for place in range(500) if found[place][0][0] != expected[place][0][0]]
    assert all(beams_without_end(ours, texts[place], 5, MOST, 1.0)[1] < 1e-5 for place in tied)
    same = [place for place in range(500) if place not in tied]
    assert len(same) >= 495
    assert_same([found[place] for place in same], [expected[place] for place in same])
    assert len({len(ids) for [(ids, _)] in found}) > 5
    greedily = greedy(ours, *tensors(texts, ours), MOST)
    assert sum(ids != written for [(ids, _)], written in zip(found, greedily, strict=True)) > 100


@pytest.mark.parametrize(("early", "stop"), [("never", "exact"), (False, "likely"), (True, "full")])
@pytest.mark.parametrize("penalty", [0.0, 0.6, 1.5])
def test_each_rule_of_stopping_gives_hugging_faces_answers_and_scores(early: object, stop: str, penalty: float) -> None:
    ours, texts = lively().double(), sources(60)
    theirs = to_hugging_face(ours)
    for answers in (1, 4):
        expected = from_hugging_face(
            theirs, texts, ours, num_beams=4, early_stopping=early, length_penalty=penalty, num_return_sequences=answers
        )
        found = searched(ours, texts, beams=4, stop=stop, length_penalty=penalty, answers=answers)
        assert_same(found, expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_stopping_exactly_loses_nothing_that_searching_to_the_limit_finds(shape: str) -> None:
    ours, texts = lively(**SHAPES[shape]).double(), sources(8)
    for beams, answers, penalty in ((2, 1, 1.0), (3, 2, 0.5), (4, 4, -1.0)):
        found = searched(ours, texts, max_tokens=8, beams=beams, answers=answers, length_penalty=penalty, stop="exact")
        expected = [beams_without_end(ours, text, beams, 8, penalty)[0][:answers] for text in texts]
        assert_same(found, expected)


@pytest.mark.parametrize("shape", ["encoder-decoder", "decoder, learned", "decoder, window"])
def test_the_company_in_a_batch_changes_nothing(shape: str) -> None:
    ours, texts = lively(**SHAPES[shape]).double(), sources(60)
    together = searched(ours, texts, answers=3)
    assert len({len(answers[0][0]) for answers in together}) > 3  # rows leave the batch at different times
    assert_same(list(reversed(searched(ours, list(reversed(texts)), answers=3))), together)
    assert_same(
        [row for start in range(0, 60, 7) for row in searched(ours, texts[start : start + 7], answers=3)], together
    )


def test_learned_positions_end_what_is_written() -> None:
    ours, texts = lively(positions="learned", max_length=9), [text[:5] for text in sources(20)]
    ours.embedding.weight_VD.data[EOS] = 0.0  # a score of 0 never wins
    found = searched(ours, texts, max_tokens=30)
    assert {len(ids) for [(ids, _)] in found} == {9}
    assert_same(found, searched(ours, texts, max_tokens=9))


def test_where_everything_is_forbidden_the_search_ends() -> None:
    ours = lively(**TINY, output_bias=True)
    ours.head.bias_V.data[EOS] = float("-inf")  # no text ever ends
    [[(ids, score)]] = searched(ours, [[3, 4, EOS]], no_repeat_ngram=1, max_tokens=30)
    assert (ids, score) == ([], float("-inf"))


@pytest.mark.parametrize("shape", ["decoder, learned", "decoder, alibi", "decoder, prefix"])
def test_a_decoder_can_search_from_nothing(shape: str) -> None:
    ours = lively(**SHAPES[shape]).double()
    found = decode(ours, torch.zeros(2, 0, dtype=torch.long), None, Decoding(6, beams=3, answers=3, stop="exact"))
    expected = beams_without_end(ours, [], 3, 6, 1.0)[0]
    assert_same([[(text.ids, text.score) for text in answers] for answers in found], [expected] * 2)
