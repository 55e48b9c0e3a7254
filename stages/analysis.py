"""What one score for all records hides: long sources, evidence far away, doubtful answers, likelihood, confusion.

Pure functions over texts and numbers that evaluate has anyway; what they return goes into analysis.json as it is. Costs
some tenths of a second, the bootstrap of each bucket's score.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import log, sqrt
from typing import Any

import numpy as np

from lightning_modules.windows import context_begin
from stages.bootstrap import Statistics, Totals, difference, scored
from stages.metrics import Reference
from stages.scores import score_groups

BUCKETS = 4  # quarters of the records
BINS = 10  # of probability
CLASSES = 20  # of a confusion matrix, the commonest; the others share one
OTHER = "(other)"


@dataclass(frozen=True)
class Bucket:
    """Records whose value lies from `low` to `high`, by their numbers."""

    low: int
    high: int
    records: list[int]


def buckets(values: Sequence[int], most: int = BUCKETS) -> list[Bucket]:
    """Up to `most` buckets of about equally many records; equal values share one."""
    values_N = np.asarray(values)
    if not len(values_N):
        return []
    bounds = np.unique(np.quantile(values_N, np.arange(1, most) / most, method="inverted_cdf"))
    which_N = np.searchsorted(bounds, values_N, side="left")
    groups = [np.flatnonzero(which_N == number) for number in range(len(bounds) + 1)]
    return [Bucket(int(values_N[g].min()), int(values_N[g].max()), g.tolist()) for g in groups if len(g)]


def score_by(
    values: Sequence[int | None],
    metric: str,
    references: Sequence[Reference],
    systems: dict[str, list[str]],
    samples: int,
    seed: int,
) -> list[dict[str, Any]]:
    """The score in each bucket of `values`: {"low", "high", "records", system: {"score", "low", "high"}}.

    Records whose value is None are left out.
    """
    known = [number for number, value in enumerate(values) if value is not None]
    found = buckets([value for value in values if value is not None])
    groups = [[known[number] for number in bucket.records] for bucket in found]
    scores = score_groups(metric, references, systems, groups, samples, seed)
    return [
        {"low": bucket.low, "high": bucket.high, "records": len(bucket.records), **score}
        for bucket, score in zip(found, scores, strict=True)
    ]


def score_by_answer(
    metric: str, references: Sequence[Reference], systems: dict[str, list[str]], samples: int, seed: int
) -> dict[str, dict[str, Any]]:
    """The score of questions with an answer, and of those whose reference is empty: {"answer", "no_answer":
    {"records", system: {"score", "low", "high"}}}. Nothing where all are of one kind."""
    groups: dict[str, list[int]] = {"answer": [], "no_answer": []}
    for number, reference in enumerate(references):
        groups["answer" if reference else "no_answer"].append(number)
    if not all(groups.values()):
        return {}
    scores = score_groups(metric, references, systems, list(groups.values()), samples, seed)
    found = zip(groups.items(), scores, strict=True)
    return {kind: {"records": len(group), **score} for (kind, group), score in found}


def source_words(sources: Sequence[str]) -> list[int]:
    """Words of each source: of the text, not of what the model's tokenizer makes of it."""
    return [len(source.split()) for source in sources]


def words_before_answer(source: str, answer: str, start: str) -> int | None:
    """Words of the context before the answer; None where it does not stand there, or is empty.

    `start` is the answer's first character in the context, if the data says so; else its first place counts. The
    question stands before the context, so this is how far the evidence is from it.
    """
    begin = context_begin(source)
    place = begin + int(start) if start.isdecimal() else -1
    if place < 0 or not source.startswith(answer, place):
        place = source.find(answer, begin)
    return len(source[begin:place].split()) if answer and place >= 0 else None


def perplexity(total_K: Totals) -> float:
    """Of a token, from sums of nats and tokens."""
    return float(np.exp(total_K[0] / total_K[1]))


def bits_per_byte(total_K: Totals) -> float:
    """From sums of nats, tokens and bytes."""
    return float(total_K[0] / log(2) / max(total_K[2], 1.0))


def likelihood(
    pretrained: Statistics, scratch: Statistics, samples: int, seed: int
) -> dict[str, dict[str, dict[str, float]]]:
    """Perplexity and bits per byte from statistics (N, 3) of each record: nats, tokens, bytes. Less is better.

    {"perplexity" or "bits_per_byte": {"pretrained", "scratch": {"score", "low", "high"}, "difference": … and "p"}}.
    """
    return {
        score.__name__: {
            "pretrained": scored(score, pretrained, samples, seed),
            "scratch": scored(score, scratch, samples, seed),
            "difference": difference(score, pretrained, scratch, samples, seed),
        }
        for score in (perplexity, bits_per_byte)
    }


def calibration(probabilities: Sequence[float], right: Sequence[bool]) -> dict[str, Any]:
    """Whether answers given with probability p are right in a share p of the cases.

    {"error": the expected calibration error, "probability", "right": means, "bins"}: each bin of a tenth's width has
    its bounds, records, mean probability, and the share that is right with its 95 % interval (Wilson 1927). The error
    is the mean over records of |probability - right| of their bins (Guo et al. 2017, arXiv:1706.04599, equation 3).
    """
    probability_N, right_N = np.clip(np.asarray(probabilities), 0.0, 1.0), np.asarray(right, dtype=np.float64)
    bin_N = np.minimum((probability_N * BINS).astype(np.int64), BINS - 1)
    bins, error = [], 0.0
    for number in range(BINS):
        inside = bin_N == number
        count = int(inside.sum())
        if not count:
            continue
        mean, share = float(probability_N[inside].mean()), float(right_N[inside].mean())
        error += count / len(right_N) * abs(mean - share)
        low, high = wilson(share, count)
        found = {"low": number / BINS, "high": (number + 1) / BINS, "records": count, "probability": mean}
        bins.append({**found, "right": share, "right_low": low, "right_high": high})
    means = {"probability": float(probability_N.mean()), "right": float(right_N.mean())}
    return _rounded({"error": error, **means, "bins": bins})


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share of `count` records (Wilson 1927, "Probable inference")."""
    z = 1.959964
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def confusion(references: Sequence[str], predictions: Sequence[str]) -> dict[str, Any]:
    """{"labels", "counts"}: rows are the true labels, columns what was answered.

    The commonest labels of the references stand by themselves; all others, and answers that are no label, share one.
    White space around a label counts as little as it does to accuracy.
    """
    references, predictions = ([text.strip() for text in texts] for texts in (references, predictions))
    common = [label for label, _ in Counter(references).most_common(CLASSES)]
    labels = sorted(common)
    if {*references, *predictions} - set(labels):
        labels.append(OTHER)
    place = {label: number for number, label in enumerate(labels)}
    counts = np.zeros((len(labels), len(labels)), dtype=np.int64)
    for reference, prediction in zip(references, predictions, strict=True):
        counts[place.get(reference, -1), place.get(prediction, -1)] += 1
    return {"labels": labels, "counts": counts.tolist()}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return round(value, 6) if isinstance(value, float) else value
