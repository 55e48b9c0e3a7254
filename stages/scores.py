"""Scores of systems on the same records, with 95 % intervals and paired tests: one path for every task and split.

The interval is the percentile bootstrap over records, the test approximate randomisation (both in stages/bootstrap.py).
It says how sure the scores of these models are, not how other seeds would do: for that there is stages/seeds.py. About
0.1 s a metric and system besides the metric itself, 0.2 s a paired test.
"""

from collections.abc import Sequence
from typing import Any

from lightning_modules.errors import PipelineError
from stages.bootstrap import difference, scored
from stages.metrics import Reference, metric


def score_task(
    metrics: Sequence[str], references: Sequence[Reference], systems: dict[str, list[str]], samples: int, seed: int
) -> dict[str, Any]:
    """Scores every system on every metric.

    Returns {"metrics": {metric: {system: {"score", "low", "high"}}}, "signatures": {metric: text}}. Of the system
    `pretrained`, "difference" is that to `scratch` as `compare` gives it, "over_baseline" that to `baseline`, where
    there are these systems.
    Raises PipelineError where there is nothing to score or the numbers of predictions and references differ.
    """
    _check(references, systems)
    table: dict[str, dict[str, dict[str, float]]] = {}
    for name in metrics:
        score = metric(name).score
        rows = {system: metric(name).statistics(texts, references) for system, texts in systems.items()}
        table[name] = {system: scored(score, one, samples, seed) for system, one in rows.items()}
        for other, key in (("scratch", "difference"), ("baseline", "over_baseline")):
            if {"pretrained", other} <= systems.keys():
                table[name][key] = difference(score, rows["pretrained"], rows[other], samples, seed)
    return {"metrics": table, "signatures": {name: metric(name).signature(references) for name in metrics}}


def compare(
    name: str, references: Sequence[Reference], one: list[str], other: list[str], samples: int, seed: int
) -> dict[str, float]:
    """{"score", "low", "high", "p"}: the first system's score minus the second's, paired.

    The interval is the bootstrap's, the p-value approximate randomisation's. Raises PipelineError as `score_task` does.
    """
    _check(references, {"the first system": one, "the second system": other})
    one_NK, other_NK = (metric(name).statistics(texts, references) for texts in (one, other))
    return difference(metric(name).score, one_NK, other_NK, samples, seed)


def score_groups(
    name: str,
    references: Sequence[Reference],
    systems: dict[str, list[str]],
    groups: Sequence[Sequence[int]],
    samples: int,
    seed: int,
) -> list[dict[str, dict[str, float]]]:
    """Of each group of records (their numbers, at least one): system → {"score", "low", "high"}."""
    _check(references, systems)
    rows = {system: metric(name).statistics(texts, references) for system, texts in systems.items()}
    return [
        {system: scored(metric(name).score, all_NK[list(group)], samples, seed) for system, all_NK in rows.items()}
        for group in groups
    ]


def record_scores(name: str, references: Sequence[Reference], predictions: list[str]) -> list[float]:
    """The metric of each record by itself, to sort examples by."""
    return [metric(name).score(statistics) for statistics in metric(name).statistics(predictions, references)]


def _check(references: Sequence[Reference], systems: dict[str, list[str]]) -> None:
    if not references:
        raise PipelineError("there are no test records to score: raise prepare.test_share or bring more data")
    for system, predictions in systems.items():
        if len(predictions) != len(references):
            raise PipelineError(f"{system} has {len(predictions)} predictions for {len(references)} references")
