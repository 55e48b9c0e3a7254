"""Scores of text-to-text tasks with the fields' standard programs, and how sure one can be of them.

BLEU and chrF are sacreBLEU's, ROUGE is Google's `rouge-score`, exact match and F1 follow the official SQuAD script; all
run from 0 to 100. A 95 % interval is the percentile bootstrap over records (Koehn 2004); the systems share the
resamples, so the interval of a difference is the paired bootstrap's. Each record's sufficient statistics are computed
once and summed for each resample: 1000 resamples of 1000 records cost about 0.1 s a metric and system, besides the
metric itself.
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
import numpy.typing as npt

from lightning_modules.errors import PipelineError

Statistics = npt.NDArray[np.float64]  # (records, K): summed over records they give the corpus score
_CELLS = 4_000_000  # entries of the matrix of resamples held at a time: 32 MB


@dataclass(frozen=True)
class Metric:
    """How to score: statistics of each record, and the corpus score (0–100) of their sum."""

    statistics: Callable[[Sequence[str], Sequence[str]], Statistics]  # (predictions, references)
    score: Callable[[npt.NDArray[np.float64]], float]
    signature: str


def score_task(
    metrics: Sequence[str], references: list[str], systems: dict[str, list[str]], samples: int, seed: int
) -> dict[str, Any]:
    """Scores every system on every metric.

    Returns {"metrics": {metric: {system: {"score", "low", "high"}}}, "signatures": {metric: text}}. Where there are
    systems `pretrained` and `scratch`, "difference" is the first minus the second, with its paired interval.
    Raises PipelineError where there is nothing to score or the numbers of predictions and references differ.
    """
    _check(references, systems)
    table: dict[str, dict[str, dict[str, float]]] = {}
    for name in metrics:
        metric = _metric(name)
        resampled: dict[str, npt.NDArray[np.float64]] = {}
        table[name] = {}
        for system, predictions in systems.items():
            statistics = metric.statistics(predictions, references)
            resampled[system] = _resampled_scores(metric, statistics, samples, seed)
            table[name][system] = _with_interval(metric.score(statistics.sum(0)), resampled[system])
        if {"pretrained", "scratch"} <= systems.keys():
            gain = table[name]["pretrained"]["score"] - table[name]["scratch"]["score"]
            table[name]["difference"] = _with_interval(gain, resampled["pretrained"] - resampled["scratch"])
    return {"metrics": table, "signatures": {name: _metric(name).signature for name in metrics}}


def record_scores(name: str, references: list[str], predictions: list[str]) -> list[float]:
    """The metric of each record by itself (0–100), to sort examples by."""
    metric = _metric(name)
    return [metric.score(statistics) for statistics in metric.statistics(predictions, references)]


def normalized_answer(text: str) -> str:
    """As the official SQuAD script: lower case, no punctuation, no articles, single spaces."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _check(references: list[str], systems: dict[str, list[str]]) -> None:
    if not references:
        raise PipelineError("there are no test records to score: raise prepare.test_share or bring more data")
    for system, predictions in systems.items():
        if len(predictions) != len(references):
            raise PipelineError(f"{system} has {len(predictions)} predictions for {len(references)} references")


def _with_interval(score: float, resampled: npt.NDArray[np.float64]) -> dict[str, float]:
    low, high = np.percentile(resampled, [2.5, 97.5])
    return {"score": round(score, 4), "low": round(float(low), 4), "high": round(float(high), 4)}


def _resampled_scores(metric: Metric, statistics: Statistics, samples: int, seed: int) -> npt.NDArray[np.float64]:
    """Scores of `samples` corpora drawn from the records with replacement; the same draws for the same seed."""
    records = len(statistics)
    random = np.random.default_rng(seed)
    scores: list[float] = []
    while len(scores) < samples:
        rows = min(samples - len(scores), max(1, _CELLS // records))
        times = np.stack([np.bincount(random.integers(records, size=records), minlength=records) for _ in range(rows)])
        scores += [metric.score(total) for total in times.astype(np.float64) @ statistics]
    return np.asarray(scores)


@cache
def _metric(name: str) -> Metric:
    if name in ("bleu", "chrf"):
        return _sacrebleu_metric(name)
    if name in ("rouge1", "rouge2", "rougeL"):
        return _rouge_metric(name)
    if name in _SQUAD:
        return _mean(_SQUAD[name], f"SQuAD official normalisation, {name}, mean over records")
    raise PipelineError(
        f"unknown metric {name!r}: stages/scores.py knows bleu, chrf, rouge1, rouge2, rougeL, {', '.join(_SQUAD)}"
    )


def _sacrebleu_metric(name: str) -> Metric:
    """Through the interface that sacreBLEU's own significance tests use."""
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    library: Any = BLEU(force=True) if name == "bleu" else CHRF()

    def statistics(predictions: Sequence[str], references: Sequence[str]) -> Statistics:
        extracted = library._extract_corpus_statistics(list(predictions), [list(references)])
        return np.asarray(extracted, dtype=np.float64)

    def score(total: npt.NDArray[np.float64]) -> float:
        return float(library._compute_score_from_stats([int(value) for value in total]).score)

    library.corpus_score(["a"], [["a"]])  # without a first score sacreBLEU cannot tell the number of references
    return Metric(statistics, score, str(library.get_signature()))


def _rouge_metric(name: str) -> Metric:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer([name], use_stemmer=False)
    words = f"rouge-score {version('rouge-score')}, {name} F1, no stemming, words of a-z and 0-9 in lower case, mean"
    return _mean(lambda prediction, reference: float(scorer.score(reference, prediction)[name].fmeasure), words)


def _mean(score_record: Callable[[str, str], float], signature: str) -> Metric:
    """A metric whose corpus score is the mean over records of `score_record(prediction, reference)`, from 0 to 1."""

    def statistics(predictions: Sequence[str], references: Sequence[str]) -> Statistics:
        pairs = zip(predictions, references, strict=True)
        return np.asarray([(score_record(*pair), 1.0) for pair in pairs], dtype=np.float64)

    return Metric(statistics, lambda total: float(100 * total[0] / total[1]), signature)


def _exact_match(prediction: str, reference: str) -> float:
    return float(normalized_answer(prediction) == normalized_answer(reference))


def _answer_f1(prediction: str, reference: str) -> float:
    found, wanted = normalized_answer(prediction).split(), normalized_answer(reference).split()
    if not found or not wanted:
        return float(found == wanted)
    common = sum((Counter(found) & Counter(wanted)).values())
    return 2 * common / (len(found) + len(wanted))


_SQUAD: dict[str, Callable[[str, str], float]] = {"exact_match": _exact_match, "f1": _answer_f1}
