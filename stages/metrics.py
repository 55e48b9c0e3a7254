"""The metrics of the tasks, by the names that stages/tasks.py gives them; all are scaled from 0 to 100.

BLEU, chrF and TER are sacreBLEU's, ROUGE is Google's `rouge-score`, exact match and F1 follow the official SQuAD
script; accuracy and macro-averaged F1 are of labels; distinct-n is Li et al.'s. All read plain text: what a model
wrote, detokenised, and the reference as it was prepared. TER is the slowest: about a millisecond a sentence.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any

import numpy as np

from lightning_modules.errors import PipelineError
from stages.bootstrap import Statistics, Totals


@dataclass(frozen=True)
class Metric:
    """How to score: statistics of each record, and the corpus score of their sum."""

    statistics: Callable[[Sequence[str], Sequence[str]], Statistics]  # (predictions, references) → (N, K)
    score: Callable[[Totals], float]
    signature: str  # what one must know to compare the number with another's


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


def _sacrebleu(name: str) -> Metric:
    """Through the interface that sacreBLEU's own significance tests use."""
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF
    from sacrebleu.metrics.ter import TER

    library: Any = {"bleu": lambda: BLEU(force=True), "chrf": CHRF, "ter": TER}[name]()

    def statistics(predictions: Sequence[str], references: Sequence[str]) -> Statistics:
        extracted = library._extract_corpus_statistics(list(predictions), [list(references)])
        return np.asarray(extracted, dtype=np.float64)

    def score(total_K: Totals) -> float:
        return float(library._compute_score_from_stats([int(value) for value in total_K]).score)

    library.corpus_score(["a"], [["a"]])  # without a first score sacreBLEU cannot tell the number of references
    return Metric(statistics, score, str(library.get_signature()))


def _rouge(name: str) -> Metric:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer([name], use_stemmer=False)
    words = f"rouge-score {version('rouge-score')}, {name} F1, no stemming, words of a-z and 0-9 in lower case, mean"
    return _mean(lambda prediction, reference: float(scorer.score(reference, prediction)[name].fmeasure), words)


def _mean(score_record: Callable[[str, str], float], signature: str) -> Metric:
    """A metric whose corpus score is the mean over records of `score_record(prediction, reference)`, from 0 to 1."""

    def statistics(predictions: Sequence[str], references: Sequence[str]) -> Statistics:
        pairs = zip(predictions, references, strict=True)
        return np.asarray([(score_record(*pair), 1.0) for pair in pairs], dtype=np.float64)

    return Metric(statistics, _mean_of_totals, signature)


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

    def statistics(predictions: Sequence[str], references: Sequence[str]) -> Statistics:
        column = {label: number for number, label in enumerate(sorted({text.strip() for text in references}))}
        counts_N3C = np.zeros((len(references), 3, len(column)))  # right, predicted, true
        for row, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
            found, wanted = column.get(prediction.strip()), column[reference.strip()]
            counts_N3C[row, 2, wanted] = 1
            if found is not None:
                counts_N3C[row, 1, found] = 1
                counts_N3C[row, 0, found] = found == wanted
        return counts_N3C.reshape(len(references), -1)

    def score(total_K: Totals) -> float:
        right_C, predicted_C, true_C = total_K.reshape(3, -1)
        there_C = predicted_C + true_C > 0
        return float(100 * np.mean(2 * right_C[there_C] / (predicted_C + true_C)[there_C]))

    return Metric(statistics, score, "F1 of each label of the references, mean over labels; other labels are wrong")


def _distinct(length: int) -> Metric:
    """Different n-grams in all that was written, as a share of its n-grams (Li et al. 2016, arXiv:1510.03055).

    It is no sum over records, and a resample in which records repeat holds fewer different n-grams than so many new
    records would. So a record's statistic is its jackknife pseudo-value (Efron and Tibshirani 1993, chapter 11): what
    leaving it out changes, times N - 1. Their mean is the share itself, their spread gives its standard error.
    """

    def statistics(predictions: Sequence[str], references: Sequence[str]) -> Statistics:
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
    return Metric(statistics, _mean_of_totals, f"different {length}-grams / {length}-grams, {words}")


def _ngrams(text: str, length: int) -> list[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return list(zip(*(words[start:] for start in range(length)), strict=False))


_SQUAD = "SQuAD official normalisation, {}, mean over records"
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
