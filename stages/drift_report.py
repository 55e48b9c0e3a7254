"""What the looks at new data have found, over time: reports/drift.json, a table, a picture, numbers for MLflow.

Costs milliseconds; the picture matplotlib's import, 1 s.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_modules.errors import PipelineError
from stages.outputs import whole_file
from stages.report_table import NAMES, Interval
from stages.tasks import LESS_IS_BETTER, TASKS

REPORT, PICTURE = Path("reports/drift.json"), Path("reports/drift.png")
GROUPS = {"known": "#8a8f98", "new": "#0b6e8a"}  # and their colours
_TEXT_NAMES = {
    "bits_per_byte": "bits per byte",
    "fertility": "fertility (tokens a word)",
    "continued_words": "words of several tokens",
    "unknown_tokens": "unknown tokens",
    "oov_words": "words not seen in training",
}
FEWEST = 10  # batches, texts or test records: resamples of fewer are too much alike
_SHARES = ("continued_words", "unknown_tokens", "oov_words")
Json = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One measure of a look on both groups, as far as it could be taken.

    `units`: how many batches, texts or test records the interval is drawn from, of the group that has fewer.
    """

    key: str  # in MLflow, and where a panel is named: `bits_per_byte`, `translation_chrf`
    name: str
    known: Interval | None
    new: Interval | None
    less_is_better: bool
    units: int
    share: bool = False

    def text(self, group: str) -> str:
        """A group's value as the table has it."""
        value: Interval | None = getattr(self, group)
        if value is None:
            return "–"
        if self.share:
            return f"{value.score:.1%} [{value.low:.1%}, {value.high:.1%}]"
        return f"{value.score:.2f} [{value.low:.2f}, {value.high:.2f}]"

    @property
    def worse(self) -> bool:
        """Whether the new texts are surely harder: the intervals do not meet.

        Not where one is drawn from fewer than FEWEST units: all resamples of one batch are the same, so that its
        interval has no width and meets no other.
        """
        if self.known is None or self.new is None or self.units < FEWEST:
            return False
        return self.new.low > self.known.high if self.less_is_better else self.new.high < self.known.low


def rows(look: Json) -> list[Row]:
    """The measures of a look: those of the pre-trained model and its tokenizer, then of each champion."""
    found = []
    texts = [look["texts"].get(group, {}) for group in GROUPS]
    for key, name in _TEXT_NAMES.items():
        known, new = (_interval(part.get(key)) for part in texts)
        units = min(part.get(key, {}).get("batches", part.get("texts", 0)) for part in texts)
        found.append(Row(key, name, known, new, less_is_better=True, units=units, share=key in _SHARES))
    for task, champion in look["champions"].items():
        scores = [champion.get(group, {}) for group in GROUPS]
        units = min(part.get("records", 0) for part in scores)
        for metric in sorted(TASKS[task].metrics, key=lambda metric: metric != TASKS[task].primary):
            known, new = (_interval(part.get(metric)) for part in scores)
            name = f"{task}, champion (version {champion['version']}): {NAMES[metric]}"
            found.append(Row(f"{task}_{metric}", name, known, new, metric in LESS_IS_BETTER, units))
    return [row for row in found if row.known or row.new]


def _interval(value: Mapping[str, float] | None) -> Interval | None:
    return None if value is None else Interval(value["score"], value["low"], value["high"])


def table(look: Json) -> str:
    """A look as a table in Markdown, and below it what could not be measured, or of too little to be judged by."""
    lines = [f"| look {look['look']}, {look['time']} | known texts | new texts |", "| --- | --- | --- |"]
    texts = {group: look["texts"].get(group, {}).get("texts", 0) for group in GROUPS}
    lines.append(f"| pre-training texts looked at | {texts['known']:,} | {texts['new']:,} |")
    for task, champion in look["champions"].items():
        records = [champion.get(group, {}).get("records", 0) for group in GROUPS]
        lines.append(f"| test records of {task} | {records[0]:,} | {records[1]:,} |")
    lines += [f"| {row.name} | {row.text('known')} | {row.text('new')} |" for row in rows(look)]
    missing = [f"- not measured: {what}: {why}" for what, why in look["not_measured"].items()]
    if few := [row.name for row in rows(look) if row.known and row.new and row.units < FEWEST]:
        missing.append(f"- of under {FEWEST} batches, texts or records, which show nothing surely: {', '.join(few)}")
    return "\n".join([*lines, *([""] if missing else []), *missing])


def findings(look: Json) -> list[str]:
    """A sentence for each measure by which the new texts are surely harder than the known ones."""
    return [f"new texts are surely harder: {r.name} {r.text('new')}, known {r.text('known')}" for r in _worse(look)]


def _worse(look: Json) -> Iterator[Row]:
    return (row for row in rows(look) if row.worse)


def numbers(look: Json) -> dict[str, float]:
    """What MLflow draws, a section a measure with both groups in it: `bits_per_byte/new`, `bits_per_byte/known`, …"""
    values = {f"{row.key}/{group}": getattr(row, group) for row in rows(look) for group in GROUPS}
    counts = {f"texts/{group}": float(found["texts"]) for group, found in look["texts"].items()}
    return counts | {key: value.score for key, value in values.items() if value is not None}


def read_looks(report: Path = REPORT) -> list[Json]:
    """All looks so far, the oldest first. Raises PipelineError where the file is damaged."""
    if not report.is_file():
        return []
    try:
        looks: list[Json] = json.loads(report.read_text(encoding="utf-8"))["looks"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PipelineError(
            f"{report} cannot be read ({error!r}): remove it; the looks are counted anew then"
        ) from None
    return looks


def add_look(look: Json, report: Path = REPORT) -> list[Json]:
    """Writes a look behind the others; returns all."""
    looks = [*read_looks(report), look]
    with whole_file(report) as file:
        file.write_text(json.dumps({"looks": looks}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return looks


def draw(looks: Sequence[Json], picture: Path = PICTURE) -> None:
    """Draws a panel a measure, new and known texts over the looks, with 95 % intervals; of a task its first metric."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    kept = [*_TEXT_NAMES, *(f"{task}_{about.primary}" for task, about in TASKS.items())]
    panels: dict[str, list[tuple[int, Row]]] = {}
    for look in looks:
        for row in rows(look):
            if row.key in kept:
                panels.setdefault(row.key, []).append((look["look"], row))
    down = max(1, -(-len(panels) // 2))
    figure = Figure(figsize=(9.0, 0.4 + 2.4 * down), layout="constrained")
    all_axes = figure.subplots(down, 2, squeeze=False).flatten()
    for axes in all_axes[len(panels) :]:
        axes.set_visible(False)
    for axes, points in zip(all_axes, panels.values(), strict=False):
        for group, colour in GROUPS.items():
            _draw_group(axes, points, group, colour)
        axes.set_title(_title(points[-1][1]), fontsize=10)
        axes.set_xlabel("look", fontsize=9)
        axes.set_xticks(sorted({number for number, _ in points}))
        if points[-1][1].share:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
            axes.set_ylim(bottom=0.0)
        axes.grid(axis="y", color="#e7e9ec")
        axes.spines[["top", "right"]].set_visible(False)
    if panels:
        figure.legend(*all_axes[0].get_legend_handles_labels(), ncols=2, frameon=False, loc="outside upper center")
    with whole_file(picture) as file:
        figure.savefig(file, format="png", dpi=110)


def _draw_group(axes: Any, points: Sequence[tuple[int, Row]], group: str, colour: str) -> None:
    there: list[tuple[int, Interval]] = [(n, getattr(row, group)) for n, row in points if getattr(row, group)]
    below = [max(0.0, value.score - value.low) for _, value in there]
    above = [max(0.0, value.high - value.score) for _, value in there]
    x, y = [number for number, _ in there], [value.score for _, value in there]
    style = {"color": colour, "label": f"{group} texts", "marker": "o", "ms": 4, "capsize": 3}
    axes.errorbar(x, y, yerr=[below, above], **style)


def _title(row: Row) -> str:
    """Of a champion without its version, which changes from look to look."""
    return re.sub(r" \(version \w+\)", "", row.name)
