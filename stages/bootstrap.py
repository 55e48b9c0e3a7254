"""How sure a score is: percentile bootstrap intervals, and a paired test of two systems. numpy alone.

Everything works on statistics: a row of numbers for each record, whose sum over records gives the corpus score. They
are made once; a resample is a product of matrices, so 1000 resamples of 1000 records cost about 0.1 s, and besides a
call of the score each.
"""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

Statistics = npt.NDArray[np.float64]  # (N, K): N records
Totals = npt.NDArray[np.float64]  # (K,)
Score = Callable[[Totals], float]
_CELLS = 4_000_000  # entries of a matrix of draws held at a time: 32 MB


def resampled(score: Score, statistics_NK: Statistics, samples: int, seed: int) -> npt.NDArray[np.float64]:
    """Scores (samples,) of corpora drawn from the records with replacement: Efron and Tibshirani 1993, chapter 13.

    The same records are drawn for the same seed and number of records, so the scores of two systems are paired (Koehn
    2004, "Statistical significance tests for machine translation evaluation").
    """
    count, random = len(statistics_NK), np.random.default_rng(seed)
    scores: list[float] = []
    for rows in _portions(samples, count):
        drawn = (np.bincount(random.integers(count, size=count), minlength=count) for _ in range(rows))
        times_RN = np.stack(list(drawn)).astype(np.float64)
        scores += [score(total_K) for total_K in times_RN @ statistics_NK]
    return np.asarray(scores)


def scored(score: Score, statistics_NK: Statistics, samples: int, seed: int) -> dict[str, float]:
    """{"score", "low", "high"} of one system."""
    return interval(score(statistics_NK.sum(0)), resampled(score, statistics_NK, samples, seed))


def interval(score: float, resampled_R: npt.NDArray[np.float64]) -> dict[str, float]:
    """{"score", "low", "high"}: the score with the bounds of its 95 % percentile interval, rounded to 1e-4."""
    low, high = np.percentile(resampled_R, [2.5, 97.5])
    return {"score": round(float(score), 4), "low": round(float(low), 4), "high": round(float(high), 4)}


def difference(score: Score, one_NK: Statistics, other_NK: Statistics, samples: int, seed: int) -> dict[str, float]:
    """{"score", "low", "high", "p"}: the first system's score minus the second's, paired record by record."""
    gain = score(one_NK.sum(0)) - score(other_NK.sum(0))
    gains_R = resampled(score, one_NK, samples, seed) - resampled(score, other_NK, samples, seed)
    return {**interval(gain, gains_R), "p": round(swap_p_value(score, one_NK, other_NK, samples, seed), 5)}


def swap_p_value(score: Score, one_NK: Statistics, other_NK: Statistics, samples: int, seed: int) -> float:
    """How often chance alone gives a difference of scores as large as that of two systems: a two-sided p-value.

    Approximate randomisation (Noreen 1989; Riezler and Maxwell 2005, "On some pitfalls in automatic evaluation and
    significance testing for MT"): if the systems were the same, each record's two answers could change
    places. Never 0: with R samples, at least 1 / (R + 1).
    """
    both_K = one_NK.sum(0) + other_NK.sum(0)
    seen = abs(score(one_NK.sum(0)) - score(other_NK.sum(0)))
    count, random, as_large = len(one_NK), np.random.default_rng(seed), 0
    for rows in _portions(samples, count):
        swapped_RN = random.integers(2, size=(rows, count)).astype(np.float64)
        for total_K in one_NK.sum(0) + swapped_RN @ (other_NK - one_NK):
            as_large += abs(score(total_K) - score(both_K - total_K)) >= seen - 1e-9
    return (as_large + 1) / (samples + 1)


def _portions(samples: int, records: int) -> Iterator[int]:
    """Numbers of draws to hold at a time, `samples` in all."""
    most = max(1, _CELLS // records)
    while samples > 0:
        yield min(samples, most)
        samples -= most
