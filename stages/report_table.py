"""The comparison that the pipeline is for: each task pre-trained, from scratch, and by a trivial baseline.

Reads `reports/tasks/TASK/metrics.json`; knows no other library, so that a flow may show the table. Costs milliseconds.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_modules.errors import PipelineError
from stages.tasks import LESS_IS_BETTER

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
CHANCE = 0.05  # a difference is sure where chance alone gives one as large less often than this
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

    @property
    def side(self) -> int:
        """Of a difference: 1 or -1, the side of zero on which it surely lies, or 0.

        The whole interval must lie there, and p, where there is one, below CHANCE: the resamples of one record, or of
        a few that agree, are all alike, so that their interval has no width and says nothing.
        """
        if self.low <= 0 <= self.high or (self.p is not None and self.p >= CHANCE):
            return 0
        return 1 if self.low > 0 else -1

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
    over_baseline: Interval
    baseline_name: str
    signature: str
    trainings: dict[str, dict[str, float]]  # system → steps, best_step and validation_loss of its training

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
        """`gain`, `loss` or `unsure`: on which side of zero the difference surely lies."""
        return _side(self.difference, self.metric)

    def verdict(self) -> str:
        """What pre-training bought on this task, in one honest sentence."""
        p = self.difference.p_text()
        gain = f"{self.difference.signed()} {self.metric_name}" + (f" ({p})" if p else "")
        words = {
            "gain": f"Pre-training bought {gain}",
            "loss": f"Pre-training cost {gain}",
            "unsure": f"Pre-training made no sure difference: {gain}, {self._doubt()}",
        }[self.outcome]
        words += f": {self.pretrained.score:.1f} against {self.scratch.score:.1f} from scratch"
        beside = _side(self.over_baseline, self.metric)
        if beside != "gain":
            more, less = ("less", "more") if self.metric in LESS_IS_BETTER else ("more", "less")
            words += f", but {less if beside == 'loss' else f'not surely {more}'} than the trivial baseline"
            words += f" ({self.baseline_name}: {self.baseline.score:.1f}, difference {self.over_baseline.signed()})"
        if self.outcome == "unsure" and self._holds_zero():
            half = (self.difference.high - self.difference.low) / 2
            words += (
                f". With {self.records} test records a difference below about {half:.1f} cannot be told from chance"
            )
        return words + "." + ("" if self.outcome == "gain" else self._courses())

    def _holds_zero(self) -> bool:
        return self.difference.low <= 0 <= self.difference.high

    def _doubt(self) -> str:
        if self._holds_zero():
            return "and the interval holds zero"
        return f"which with {self.records} test record{'s' * (self.records > 1)} may be chance"

    def _courses(self) -> str:
        """Which weights were kept of both trainings: where pre-training did not win, something to look into."""
        if not self.trainings:
            return ""
        ours, theirs = (_course(self.trainings[system]) for system in ("pretrained", "scratch"))
        return f" Best on the validation split, and so kept, were {ours} and, from scratch, {theirs}."


def _course(facts: dict[str, float]) -> str:
    return f"step {facts['best_step']:,} of {facts['steps']:,} (loss {facts['validation_loss']:.2f})"


def _side(difference: Interval, metric: str) -> str:
    """`gain`, `loss` or `unsure`: on which side of zero the difference surely lies."""
    if not difference.side:
        return "unsure"
    return "gain" if (difference.side > 0) != (metric in LESS_IS_BETTER) else "loss"


def unknown_words(share: float) -> str:
    """What a share of unknown tokens does to bits per byte, in a sentence."""
    return (
        f"{share:.2%} of the tokens are <unk>, which costs little to predict however many bytes it stands for: these "
        "bits per byte are not to be compared with those of another tokenizer."
    )


def headline(rows: Sequence[Row]) -> str:
    """On how many tasks pre-training won, by their primary metrics, and on which it did not."""
    primary = [row for row in rows if row.primary]
    words = {"loss": "it cost", "unsure": "no sure difference"}
    others = [f"{row.task_name} ({words[row.outcome]})" for row in primary if row.outcome != "gain"]
    won = len(primary) - len(others)
    told = f"Pre-training won on {won} of {len(primary)} tasks, outside the 95 % interval"
    return f"{told}; not on {', '.join(others)}." if others else f"{told}."


def comparison_table(reports: Path, tasks: Iterable[str] | None = None) -> list[Row]:
    """A row for each task and metric, the primary metric first: of `tasks`, or of those that the report was made of.

    DVC leaves the results of a task that params.yaml no longer has where they are: they are no part of a run without
    it. Raises PipelineError for a broken file.
    """
    rows = []
    for task in sorted(_reported(reports) if tasks is None else tasks):
        path = reports / "tasks" / task / "metrics.json"
        if not path.exists():
            continue
        try:
            rows += _rows(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError) as error:
            raise PipelineError(f"{path} is not what evaluate writes ({error!r}): run evaluate again") from error
    return rows


def _reported(reports: Path) -> list[str]:
    """The keys of reports/metrics.json: the tasks and `pretraining`; none before there is a report."""
    path = reports / "metrics.json"
    try:
        return list(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return []
    except (ValueError, TypeError) as error:
        raise PipelineError(f"{path} cannot be read ({error}): run report again") from error


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
            trainings=report.get("trainings", {}),
        )
        for name in names
    ]


_SYSTEMS = ("pretrained", "scratch", "baseline", "difference", "over_baseline")
