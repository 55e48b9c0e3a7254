"""Metrics equal the reference programs', and degenerate texts give numbers."""

import random
import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER
from sklearn.metrics import accuracy_score, f1_score
from tiny import sentences

from lightning_modules.errors import PipelineError
from stages.bootstrap import scored
from stages.metrics import Reference, metric, normalized_answer
from stages.tasks import TASKS

WORDS = ["the", "a", "service", "lists", "all", "of", "your", "open", "tables", "and", "returns", "their", "names"]
LABELS = ["create", "delete", "list", "describe"]
DIVERSITY = ("distinct1", "distinct2")  # of what is written, whatever the references are


def corpus(records: int, noise: float, seed: int) -> tuple[list[str], list[str]]:
    """References, and predictions in which a share `noise` of the words is another word."""
    draw = random.Random(seed)
    references = [" ".join(draw.choices(WORDS, k=draw.randint(4, 12))) for _ in range(records)]
    predictions = [
        " ".join(draw.choice(WORDS) if draw.random() < noise else word for word in reference.split())
        for reference in references
    ]
    return references, predictions


def score(name: str, references: Sequence[Reference], predictions: list[str]) -> float:
    return metric(name).score(metric(name).statistics(predictions, references).sum(0))


@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("name", "library"), [("bleu", BLEU), ("chrf", CHRF), ("ter", TER)])
def test_bleu_chrf_and_ter_are_sacrebleus(name: str, library: Any, noise: float) -> None:
    references, predictions = corpus(60, noise, seed=3)
    theirs = library()
    assert score(name, references, predictions) == pytest.approx(theirs.corpus_score(predictions, [references]).score)
    assert metric(name).signature(references) == str(theirs.get_signature())


CHINESE = ["请打开客厅的灯光。", "无法连接到设备，请重试。", "这个集成需要一个访问令牌。"]
JAPANESE = [
    "リビングの照明をつけてください。",
    "デバイスに接続できません。",
    "この統合にはアクセストークンが必要です。",
]
THAI = ["กรุณาเปิดไฟในห้องนั่งเล่น", "ไม่สามารถเชื่อมต่อกับอุปกรณ์ได้", "การรวมนี้ต้องใช้โทเค็นการเข้าถึง"]


@pytest.mark.parametrize("references", [CHINESE, JAPANESE, THAI], ids=["Chinese", "Japanese", "Thai"])
def test_bleu_of_scripts_without_spaces_is_sacrebleus_of_characters(references: list[str]) -> None:
    predictions = [text.replace(text[4], "x") for text in references]
    theirs = BLEU(tokenize="char")
    wanted = theirs.corpus_score(predictions, [references]).score
    assert 30 < score("bleu", references, predictions) == pytest.approx(wanted)
    assert "|tok:char|" in metric("bleu").signature(references) == str(theirs.get_signature())


def test_the_references_alone_choose_how_bleu_counts() -> None:
    english = ["Open the light in the living room.", "Please try again.", "An access token is needed."]
    assert score("bleu", english, CHINESE) == pytest.approx(BLEU().corpus_score(CHINESE, [english]).score)
    assert "|tok:13a|" in metric("bleu").signature(english)
    mixed = [f"Home Assistant: {text}" for text in CHINESE]  # more letters of English than of Chinese
    assert "|tok:13a|" in metric("bleu").signature(mixed)
    assert "|tok:char|" in metric("bleu").signature([text.replace("设备", "API") for text in CHINESE])
    assert [score(name, CHINESE, CHINESE) for name in ("bleu", "chrf")] == pytest.approx([100, 100])


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from([*LABELS, "no label"])), min_size=1, max_size=30))
def test_accuracy_and_macro_f1_are_scikit_learns(pairs: list[tuple[str, str]]) -> None:
    references, predictions = [list(side) for side in zip(*pairs, strict=True)]
    own = sorted(set(references))
    expected = f1_score(references, predictions, labels=own, average="macro", zero_division=0)
    assert score("macro_f1", references, predictions) == pytest.approx(100 * expected)
    assert score("accuracy", references, predictions) == pytest.approx(100 * accuracy_score(references, predictions))
    assert score("macro_f1", references, [f" {text}\n" for text in predictions]) == pytest.approx(100 * expected)


@pytest.mark.parametrize("length", [1, 2])
def test_distinct_counts_different_ngrams(length: int) -> None:
    _, written = corpus(30, 0.5, seed=5)
    grams = Counter(tuple(t.split()[i : i + length]) for t in written for i in range(len(t.split()) - length + 1))
    expected = 100 * len(grams) / sum(grams.values())
    assert score(f"distinct{length}", [""] * 30, written) == pytest.approx(expected)
    assert score(f"distinct{length}", [""] * 3, ["", "one", ""]) == pytest.approx(100 if length == 1 else 0)
    assert score(f"distinct{length}", [""], ["Go on, go on."]) == pytest.approx(50 if length == 1 else 200 / 3)


def test_the_interval_of_distinct_covers_what_other_texts_of_as_many_records_give() -> None:
    """Resampling the texts themselves does not: repeated records hold the same n-grams twice."""
    vocabulary, draws = np.array([f"w{n}" for n in range(300)]), np.random.default_rng(1)
    frequency = 1 / np.arange(1, 301)

    def texts() -> list[str]:
        words = draws.choice(vocabulary, size=(60, 5), p=frequency / frequency.sum())
        return [" ".join(row) for row in words]

    truth = np.mean([score("distinct1", [""] * 60, texts()) for _ in range(300)])
    covered = 0
    for trial in range(100):
        one = metric("distinct1")
        found = scored(one.score, one.statistics(texts(), [""] * 60), 200, trial)
        covered += found["low"] <= truth <= found["high"]
    assert covered >= 89


def test_the_interval_of_distinct_stays_within_what_a_share_can_be() -> None:
    written = [f"word{n} other{n} third{n}" for n in range(20)]
    written[0] = written[1]
    one = metric("distinct1")
    found = scored(one.score, one.statistics(written, [""] * 20), 500, 1)
    assert found["score"] == 95
    assert 0 <= found["low"] < 95 < found["high"] <= 100
    alike = one.statistics(["a a a a a b", *["a a a a a a a"] * 20], [""] * 21)
    assert scored(one.score, alike, 500, 1)["low"] >= 0


@pytest.mark.parametrize("name", sorted({name for task in TASKS.values() for name in task.metrics} - {*DIVERSITY}))
def test_every_metric_of_the_tasks_goes_from_nothing_to_a_hundred(name: str) -> None:
    references, _ = corpus(20, 0, seed=13)
    worst, best = (100, 0) if name == "ter" else (0, 100)
    assert score(name, references, references) == pytest.approx(best, abs=0.01)
    assert score(name, references, [""] * 20) == worst
    assert metric(name).signature(references)


def test_squads_own_examples() -> None:
    assert normalized_answer("The  Eiffel-Tower, a tower!") == "eiffeltower tower"
    pairs = [("the cat sat", "A cat."), ("cats", "dogs"), ("", "x"), ("the", "a"), ("Denver Broncos", "denver broncos")]
    singly = [(score("f1", [wanted], [found]), score("exact_match", [wanted], [found])) for found, wanted in pairs]
    assert [f1 for f1, _ in singly] == pytest.approx([200 / 3, 0, 0, 100, 100])
    assert [exact for _, exact in singly] == [0, 0, 0, 100, 100]


def official(metric_name: str, golds: list[str], found: str) -> float:
    """Of one question, as in the script that SQuAD's authors publish for version 1.1: the best of all answers."""

    def normal(text: str) -> list[str]:
        text = "".join(character for character in text.lower() if character not in set(string.punctuation))
        return re.sub(r"\b(a|an|the)\b", " ", text).split()

    def of_one(gold: str) -> float:
        a, b = normal(found), normal(gold)
        if metric_name == "exact_match":
            return float(a == b)
        same = sum((Counter(a) & Counter(b)).values())
        if not same:
            return float(not a and not b)
        precision, recall = same / len(a), same / len(b)
        return 2 * precision * recall / (precision + recall)

    return max(of_one(gold) for gold in golds)


@pytest.mark.parametrize("name", ["exact_match", "f1"])
def test_of_several_answers_the_best_counts_as_in_squads_own_script(name: str) -> None:
    draw = random.Random(3)
    texts, predictions = corpus(60, 0.5, seed=4)
    several: list[Reference] = [
        text if number % 3 == 0 else [text, *draw.sample(texts, 2), " ".join(text.split()[:3])]
        for number, text in enumerate(texts)
    ]
    predictions = [" ".join(p.split()[:3]) if number % 4 == 1 else p for number, p in enumerate(predictions)]
    golds = [[one] if isinstance(one, str) else one for one in several]
    wanted = 100 * np.mean([official(name, *pair) for pair in zip(golds, predictions, strict=True)])
    assert score(name, several, predictions) == pytest.approx(float(wanted))
    assert score(name, several, predictions) > score(name, texts, predictions)


def test_what_compares_with_one_text_takes_the_first_of_several() -> None:
    references, predictions = corpus(20, 0.4, seed=6)
    several: list[Reference] = [[text, "another"] for text in references]
    for name in ("bleu", "chrf", "ter", "macro_f1"):
        assert score(name, several, predictions) == score(name, references, predictions)
        assert metric(name).signature(several) == metric(name).signature(references)


@pytest.mark.parametrize("name", ["rouge1", "rouge2", "rougeL"])
def test_rouge_of_english_is_googles(name: str) -> None:
    references = [*sentences()[:150], "snake_case and CamelCase2, it's 3.5%!", "—"]
    assert any("_" in text for text in references[:150])
    predictions = [
        " ".join(text.split()[1:-1]) + f" {other}" for text, other in zip(references, sentences(), strict=False)
    ]
    google = RougeScorer([name])
    wanted = np.mean([google.score(*pair)[name].fmeasure for pair in zip(references, predictions, strict=True)])
    assert score(name, references, predictions) == pytest.approx(100 * float(wanted), abs=1e-9)


RUSSIAN = ["Не удалось подключиться к устройству.", "Ёлка стоит в гостиной, №2."]
HINDI = ["डिवाइस से कनेक्ट नहीं हो सका।", "कृपया फिर से प्रयास करें।"]


@pytest.mark.parametrize("texts", [RUSSIAN, HINDI, CHINESE, JAPANESE, THAI, ["Größe der Übersicht ändern"]])
def test_rouge_of_other_scripts_counts_their_words(texts: list[str]) -> None:
    assert [score(name, texts, texts) for name in ("rouge1", "rouge2", "rougeL")] == [100, 100, 100]
    assert score("rouge1", texts, ["nothing of it"] * len(texts)) == 0


def test_a_word_has_its_marks_and_a_character_of_chinese_is_one() -> None:
    assert score("rouge1", ["Größe ändern"], ["grosse ändern"]) == 50
    assert score("rouge1", ["हिन्दी भाषा"], ["हिन्दू भाषा"]) == 50  # another vowel sign is another word
    assert score("rouge1", ["打开灯"], ["打开门"]) == pytest.approx(200 / 3)
    assert score("rouge2", ["用API打开"], ["用 API 打开"]) == 100
    assert score("distinct1", [""], ["打开打开"]) == 50


def test_rouge_is_counted_by_hand() -> None:
    # In common: 3 of 4 and 3 of 3 words, no pair, a subsequence of 2; and without stemming "lists" is not "list".
    names = ("rouge1", "rouge2", "rougeL")
    found = {name: score(name, ["list open tables"], ["all list tables open"]) for name in names}
    assert found["rouge1"] == pytest.approx(100 * 2 * 0.75 * 1 / 1.75)
    assert found["rouge2"] == 0
    assert found["rougeL"] == pytest.approx(100 * 2 * 0.5 * (2 / 3) / (0.5 + 2 / 3))
    assert score("rouge1", ["lists"], ["list"]) == 0


def test_an_unknown_metric_is_one_line() -> None:
    with pytest.raises(PipelineError, match=r"unknown metric 'blue': stages/metrics.py knows bleu, chrf, ter, "):
        metric("blue")
