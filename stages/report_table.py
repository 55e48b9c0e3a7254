"""The comparison that the pipeline is for: each task pre-trained, from scratch, and by a trivial baseline.

Reads `reports/tasks/*/metrics.json`; knows no other library, so that a flow may show the table. Costs milliseconds.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_modules.errors import PipelineError

NAMES = {
    "bleu": "BLEU",
    "chrf": "chrF",
    "ter": "TER",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "exact_match": "exact match",
    "f1": "F1",
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "distinct1": "distinct-1",
    "distinct2": "distinct-2",
    "perplexity": "perplexity",
    "bits_per_byte": "bits per byte",
}
LESS_IS_BETTER = {"ter", "perplexity", "bits_per_byte"}
HEADER = ("task", "metric", "pre-trained", "from scratch", "baseline", "pre-training bought")


@dataclass(frozen=True)
class Interval:
    """A score, or a difference of two, with its 95 % interval; of a difference also the p-value of a paired test."""

    score: float
    low: float
    high: float
    p: float | None = None

    def __str__(self) -> str:
        return f"{self.score:.1f} [{self.low:.1f}, {self.high:.1f}]"

    def signed(self) -> str:
        """As text with the sign of a difference."""
        return f"{self.score:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"

    def p_text(self) -> str:
        """The p-value in words; the smallest that a test of some thousand swaps can give is a bound."""
        return "" if self.p is None else "p ≤ 0.001" if self.p <= 0.001 else f"p = {self.p:.3f}"


@dataclass(frozen=True)
class Row:
    """One metric of one task. `primary` is the metric that the task is judged by."""

    task: str
    metric: str
    primary: bool
    records: int
    pretrained: Interval
    scratch: Interval
    baseline: Interval
    difference: Interval
    baseline_name: str
    signature: str

    @property
    def metric_name(self) -> str:
        """The metric's usual spelling, with a hint where less is better."""
        return NAMES.get(self.metric, self.metric) + (" (less is better)" if self.metric in LESS_IS_BETTER else "")

    @property
    def task_name(self) -> str:
        """The task in words."""
        return self.task.replace("_", " ")

    @property
    def outcome(self) -> str:
        """`gain`, `loss` or `unsure`: on which side of zero the whole interval of the difference lies."""
        if self.difference.low <= 0 <= self.difference.high:
            return "unsure"
        return "gain" if (self.difference.low > 0) != (self.metric in LESS_IS_BETTER) else "loss"

    def verdict(self) -> str:
        """What pre-training bought on this task, in one honest sentence."""
        p = self.difference.p_text()
        gain = f"{self.difference.signed()} {self.metric_name}" + (f" ({p})" if p else "")
        words = {
            "gain": f"Pre-training bought {gain}",
            "loss": f"Pre-training cost {gain}",
            "unsure": f"Pre-training made no sure difference: {gain}, and the interval holds zero",
        }[self.outcome]
        words += f": {self.pretrained.score:.1f} against {self.scratch.score:.1f} from scratch"
        ahead = self.pretrained.score - self.baseline.score
        if (-ahead if self.metric in LESS_IS_BETTER else ahead) <= 0:
            words += f", but no more than the trivial baseline ({self.baseline_name}: {self.baseline.score:.1f})"
        if self.outcome == "unsure":
            half = (self.difference.high - self.difference.low) / 2
            words += (
                f". With {self.records} test records a difference below about {half:.1f} cannot be told from chance"
            )
        return words + "."


def headline(rows: Sequence[Row]) -> str:
    """On how many tasks pre-training won, by their primary metrics, and on which it did not."""
    primary = [row for row in rows if row.primary]
    words = {"loss": "it cost", "unsure": "no sure difference"}
    others = [f"{row.task_name} ({words[row.outcome]})" for row in primary if row.outcome != "gain"]
    won = len(primary) - len(others)
    told = f"Pre-training won on {won} of {len(primary)} tasks, outside the 95 % interval"
    return f"{told}; not on {', '.join(others)}." if others else f"{told}."


def comparison_table(reports: Path) -> list[Row]:
    """A row for each task and metric, the primary metric first. Raises PipelineError for a broken file."""
    rows = []
    for path in sorted((reports / "tasks").glob("*/metrics.json")):
        try:
            rows += _rows(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError) as error:
            raise PipelineError(f"{path} is not what evaluate writes ({error!r}): run evaluate again") from error
    return rows


def table_text(rows: Sequence[Row]) -> str:
    """The table as plain text in columns."""
    cells = [HEADER, *(_cells(row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(HEADER))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join([lines[0], "  ".join("─" * width for width in widths), *lines[1:]])


def _cells(row: Row) -> tuple[str, ...]:
    name = row.task_name if row.primary else ""
    return name, row.metric_name, str(row.pretrained), str(row.scratch), str(row.baseline), row.difference.signed()


def _rows(report: dict[str, Any]) -> list[Row]:
    primary = report["primary"]
    names = sorted(report["metrics"], key=lambda name: name != primary)
    return [
        Row(
            task=report["task"],
            metric=name,
            primary=name == primary,
            records=report["records"],
            **{system: Interval(**report["metrics"][name][system]) for system in _SYSTEMS},
            baseline_name=report["baseline_name"],
            signature=report["signatures"][name],
        )
        for name in names
    ]


_SYSTEMS = ("pretrained", "scratch", "baseline", "difference")
