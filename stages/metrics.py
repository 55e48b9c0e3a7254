"""The metrics of the tasks, by the names that stages/tasks.py gives them; all are scaled from 0 to 100.

BLEU, chrF and TER are sacreBLEU's, ROUGE is Google's `rouge-score` with words of any script, exact match and F1 follow
the official SQuAD script; accuracy and macro-averaged F1 are of labels; distinct-n is Li et al.'s. All read plain text:
what a model wrote, detokenised, and the reference as it was prepared. TER is the slowest: about a millisecond a
sentence.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import numpy as np

from lightning_modules.errors import PipelineError
from stages.bootstrap import Statistics, Totals

Reference = str | list[str]  # what counts as right: a text, or several
# Scripts that put no spaces between words: Thai, Lao, Tibetan, Burmese, Khmer, kana, Chinese characters.
_UNSPACED = (
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
_IS_UNSPACED, _UNSPACED_ENDS = re.compile(f"[{_UNSPACED}]"), re.compile(f"(?<=[{_UNSPACED}])(?=[^{_UNSPACED}])")


@dataclass(frozen=True)
class Metric:
    """How to score: statistics of each record, and the corpus score of their sum.

    Of several texts that count as right the best counts for a metric that is a mean over records, the first for others.
    """

    statistics: Callable[[Sequence[str], Sequence[Reference]], Statistics]  # (predictions, references) → (N, K)
    score: Callable[[Totals], float]
    signature: Callable[[Sequence[Reference]], str]  # (references) → what to know to compare the number with another's


@cache
def metric(name: str) -> Metric:
    """The metric of that name. Raises PipelineError for one that nobody knows."""
    if name not in _METRICS:
        raise PipelineError(f"unknown metric {name!r}: stages/metrics.py knows {', '.join(_METRICS)}")
    return _METRICS[name]()


def normalized_answer(text: str) -> str:
    """As the official SQuAD script: lower case, no punctuation, no articles, single spaces."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _texts(reference: Reference) -> list[str]:
    return [reference] if isinstance(reference, str) else reference


def _firsts(references: Sequence[Reference]) -> list[str]:
    return [_texts(reference)[0] for reference in references]


def _words(text: str) -> list[str]:
    """Letters, marks and digits that stand together, in lower case; of scripts without spaces each letter by itself."""
    parts = []
    for character in text.lower():
        kind = unicodedata.category(character)[0]
        apart = kind in "LN" and _IS_UNSPACED.match(character)
        parts.append(f" {character}" if apart else character if kind in "LMN" else " ")
    return _UNSPACED_ENDS.sub(" ", "".join(parts)).split()


def _without_spaces(references: Sequence[Reference]) -> bool:
    """Whether most letters of the references are of scripts that put no spaces between words."""
    letters = [letter for text in _firsts(references) for letter in text if letter.isalpha()]
    return 2 * sum(_IS_UNSPACED.match(letter) is not None for letter in letters) > len(letters)


def _sacrebleu(name: str) -> Metric:
    """Through the interface that sacreBLEU's own significance tests use.

    BLEU is of words as its tokenizer 13a finds them; where `_without_spaces`, for which these would be sentences, of
    characters. The references alone decide, so that systems are measured alike.
    """
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF
    from sacrebleu.metrics.ter import TER

    @cache
    def library(tokenizer: str) -> Any:
        made: Any = {"bleu": lambda: BLEU(force=True, tokenize=tokenizer), "chrf": CHRF, "ter": TER}[name]()
        made.corpus_score(["a"], [["a"]])  # without a first score sacreBLEU cannot tell the number of references
        return made

    def chosen(references: Sequence[Reference]) -> Any:
        return library("char" if name == "bleu" and _without_spaces(references) else "13a")

    def statistics(predictions: Sequence[str], references: Sequence[Reference]) -> Statistics:
        extracted = chosen(references)._extract_corpus_statistics(list(predictions), [_firsts(references)])
        return np.asarray(extracted, dtype=np.float64)

    def score(total_K: Totals) -> float:
        return float(library("13a")._compute_score_from_stats([int(value) for value in total_K]).score)

    return Metric(statistics, score, lambda references: str(chosen(references).get_signature()))


def _rouge(name: str) -> Metric:
    """Of ASCII text the numbers of `rouge-score` as it stands, which knows no other letters."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer([name], tokenizer=SimpleNamespace(tokenize=_words))
    words = "words of letters and digits in lower case, of scripts without spaces characters"
    signature = f"rouge-score {version('rouge-score')}, {name} F1, no stemming, {words}, mean"
    return _mean(lambda prediction, reference: float(scorer.score(reference, prediction)[name].fmeasure), signature)


def _mean(score_record: Callable[[str, str], float], signature: str) -> Metric:
    """A metric whose corpus score is the mean over records of `score_record(prediction, reference)`, from 0 to 1.

    Of several references of a record the best counts.
    """

    def statistics(predictions: Sequence[str], references: Sequence[Reference]) -> Statistics:
        pairs = zip(predictions, references, strict=True)
        best = (max(score_record(prediction, text) for text in _texts(reference)) for prediction, reference in pairs)
        return np.asarray([(score, 1.0) for score in best], dtype=np.float64)

    return Metric(statistics, _mean_of_totals, lambda references: signature)


def _mean_of_totals(total_K: Totals) -> float:
    return float(100 * total_K[0] / total_K[1])


def _exact_match(prediction: str, reference: str) -> float:
    return float(normalized_answer(prediction) == normalized_answer(reference))


def _answer_f1(prediction: str, reference: str) -> float:
    found, wanted = normalized_answer(prediction).split(), normalized_answer(reference).split()
    if not found or not wanted:
        return float(found == wanted)
    common = sum((Counter(found) & Counter(wanted)).values())
    return 2 * common / (len(found) + len(wanted))


def _same_label(prediction: str, reference: str) -> float:
    return float(prediction.strip() == reference.strip())


def _macro_f1() -> Metric:
    """The mean of the labels' F1: a rare label counts as much as a frequent one."""

    def statistics(predictions: Sequence[str], references: Sequence[Reference]) -> Statistics:
        labels = [text.strip() for text in _firsts(references)]
        column = {label: number for number, label in enumerate(sorted(set(labels)))}
        counts_N3C = np.zeros((len(references), 3, len(column)))  # right, predicted, true
        for row, (prediction, label) in enumerate(zip(predictions, labels, strict=True)):
            found, wanted = column.get(prediction.strip()), column[label]
            counts_N3C[row, 2, wanted] = 1
            if found is not None:
                counts_N3C[row, 1, found] = 1
                counts_N3C[row, 0, found] = found == wanted
        return counts_N3C.reshape(len(references), -1)

    def score(total_K: Totals) -> float:
        right_C, predicted_C, true_C = total_K.reshape(3, -1)
        there_C = predicted_C + true_C > 0
        return float(100 * np.mean(2 * right_C[there_C] / (predicted_C + true_C)[there_C]))

    signature = "F1 of each label of the references, mean over labels; other labels are wrong"
    return Metric(statistics, score, lambda references: signature)


def _distinct(length: int) -> Metric:
    """Different n-grams in all that was written, as a share of its n-grams (Li et al. 2016, arXiv:1510.03055).

    It is no sum over records, and a resample in which records repeat holds fewer different n-grams than so many new
    records would. So a record's statistic is its jackknife pseudo-value (Efron and Tibshirani 1993, chapter 11): what
    leaving it out changes, times N - 1. Their mean is the share itself, their spread gives its standard error. The mean
    of a resample may lie beyond what a share can be, and then is the nearest that one can.
    """

    def statistics(predictions: Sequence[str], references: Sequence[Reference]) -> Statistics:
        grams = [_ngrams(prediction, length) for prediction in predictions]
        written_N = np.array([len(one) for one in grams], dtype=np.float64)
        holders = Counter(gram for one in grams for gram in set(one))
        lost_N = np.array([sum(holders[gram] == 1 for gram in set(one)) for one in grams], dtype=np.float64)
        total, rest_N = written_N.sum(), written_N.sum() - written_N
        whole = len(holders) / max(total, 1.0)
        without_N = (len(holders) - lost_N) / np.maximum(rest_N, 1.0)
        share_N = whole + (len(grams) - 1) * (without_N.mean() - without_N)
        return np.stack([share_N, np.ones(len(grams))], axis=1)

    words = "words of letters and digits in lower case, over all that was written; depends on how much that is"
    signature = f"different {length}-grams / {length}-grams, {words}"
    return Metric(statistics, lambda total_K: min(100.0, max(0.0, _mean_of_totals(total_K))), lambda _: signature)


def _ngrams(text: str, length: int) -> list[tuple[str, ...]]:
    words = _words(text)
    return list(zip(*(words[start:] for start in range(length)), strict=False))


_SQUAD = "SQuAD official normalisation, {}, best of a record's answers, mean over records"
_METRICS: dict[str, Callable[[], Metric]] = {
    "bleu": lambda: _sacrebleu("bleu"),
    "chrf": lambda: _sacrebleu("chrf"),
    "ter": lambda: _sacrebleu("ter"),
    "rouge1": lambda: _rouge("rouge1"),
    "rouge2": lambda: _rouge("rouge2"),
    "rougeL": lambda: _rouge("rougeL"),
    "exact_match": lambda: _mean(_exact_match, _SQUAD.format("exact match")),
    "f1": lambda: _mean(_answer_f1, _SQUAD.format("F1")),
    "accuracy": lambda: _mean(_same_label, "same label, white space around it aside, mean over records"),
    "macro_f1": _macro_f1,
    "distinct1": lambda: _distinct(1),
    "distinct2": lambda: _distinct(2),
}
