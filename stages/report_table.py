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
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "exact_match": "exact match",
    "f1": "F1",
}
HEADER = ("task", "metric", "pre-trained", "from scratch", "baseline", "pre-training bought")


@dataclass(frozen=True)
class Interval:
    """A score (0–100), or a difference of two, with its 95 % interval."""

    score: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.score:.1f} [{self.low:.1f}, {self.high:.1f}]"

    def signed(self) -> str:
        """As text with the sign of a difference."""
        return f"{self.score:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"


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
        """The metric's usual spelling."""
        return NAMES.get(self.metric, self.metric)

    @property
    def task_name(self) -> str:
        """The task in words."""
        return self.task.replace("_", " ")

    def verdict(self) -> str:
        """What pre-training bought on this task, in one honest sentence."""
        gain = f"{self.difference.signed()} {self.metric_name}"
        if self.difference.low > 0:
            words = f"Pre-training bought {gain}"
        elif self.difference.high < 0:
            words = f"Pre-training cost {gain}"
        else:
            words = f"Pre-training made no sure difference: {gain}, and the interval holds zero"
        words += f": {self.pretrained.score:.1f} against {self.scratch.score:.1f} from scratch"
        if self.pretrained.score <= self.baseline.score:
            words += f", but no more than the trivial baseline ({self.baseline_name}: {self.baseline.score:.1f})"
        return words + "."


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
