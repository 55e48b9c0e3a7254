"""The plots as SVG: learning curves, scores with intervals, calibration, confusion, attention. Costs matplotlib's
import, 1 s."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stages.report_table import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {"pretrained": "#0b6e8a", "scratch": "#d9822b", "baseline": "#8a8f98"}
LABELS = {"pretrained": "pre-trained", "scratch": "from scratch", "baseline": "trivial baseline"}
_INK = "#3a3f47"
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Curve:
    """A line in a plot: (step, nats per token) points."""

    label: str
    points: Points
    colour: str
    faint: bool = False


def curves_svg(curves: Sequence[Curve]) -> str:
    """Losses over steps. Faint lines are training losses, the others validation losses."""
    figure, axes = _figure(2.9)
    for curve in curves:
        x, y = [point[0] for point in curve.points], [point[1] for point in curve.points]
        style = {"lw": 1, "alpha": 0.4} if curve.faint else {"lw": 2, "marker": "o", "ms": 3.5}
        axes.plot(x, y, color=curve.colour, label=curve.label, **style)
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token)")
    axes.grid(axis="y", color="#e7e9ec")
    axes.legend(frameon=False, fontsize=9)
    return _svg(figure)


def scores_svg(rows: Sequence[Row]) -> str:
    """Each row's three scores as points on one scale from 0 to 100, with 95 % intervals."""
    figure, axes = _figure(0.8 + 0.75 * len(rows))
    for number, row in enumerate(rows):
        for offset, system in zip((-0.22, 0.0, 0.22), LABELS, strict=True):
            interval = getattr(row, system)
            y = number + offset
            axes.plot([interval.low, interval.high], [y, y], color=COLOURS[system], lw=2.5, solid_capstyle="round")
            label = LABELS[system] if number == 0 else None
            axes.plot([interval.score], [y], "o", color=COLOURS[system], ms=6, label=label)
    axes.set_yticks(range(len(rows)), [f"{row.task_name}\n{row.metric_name}" for row in rows])
    axes.set_ylim(len(rows) - 0.45, -0.55)
    axes.set_xlim(0, 100)
    axes.grid(axis="x", color="#e7e9ec")
    axes.tick_params(axis="y", length=0)
    axes.legend(frameon=False, fontsize=9, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return _svg(figure)


def buckets_svg(found: Sequence[Mapping[str, Any]], metric_name: str, unit: str) -> str:
    """The score of each model in each bucket of records (as stages/analysis.py gives them), with 95 % intervals."""
    figure, axes = _figure(2.6)
    places = range(len(found))
    for offset, system in ((-0.06, "pretrained"), (0.06, "scratch")):
        scores = [bucket[system] for bucket in found]
        x = [place + offset for place in places]
        bars = [[one["score"] - one["low"] for one in scores], [one["high"] - one["score"] for one in scores]]
        bars = [[max(0.0, length) for length in side] for side in bars]
        style = {"color": COLOURS[system], "lw": 2, "marker": "o", "ms": 5, "capsize": 3}
        axes.errorbar(x, [one["score"] for one in scores], yerr=bars, label=LABELS[system], **style)
    ranges = [f"{bucket['low']}–{bucket['high']}\n({bucket['records']} records)" for bucket in found]
    axes.set_xticks(places, ranges)
    axes.set_xlabel(unit)
    axes.set_ylabel(metric_name)
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color="#e7e9ec")
    axes.legend(frameon=False, fontsize=9)
    return _svg(figure)


def calibration_svg(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Of each model: how often answers are right against how probable the model found them, with 95 % intervals."""
    figure, axes = _figure(3.4)
    axes.plot([0, 1], [0, 1], color="#c9cdd3", lw=1)
    for system, measured in found.items():
        bins = measured["bins"]
        right = [one["right"] for one in bins]
        bars = [[one["right"] - one["right_low"] for one in bins], [one["right_high"] - one["right"] for one in bins]]
        bars = [[max(0.0, length) for length in side] for side in bars]
        label = f"{LABELS[system]} (error {measured['error']:.2f})"
        style = {"color": COLOURS[system], "lw": 1.5, "marker": "o", "ms": 5, "capsize": 3}
        axes.errorbar([one["probability"] for one in bins], right, yerr=bars, label=label, **style)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("probability of the answer, by the model")
    axes.set_ylabel("share of right answers")
    axes.grid(color="#e7e9ec")
    axes.legend(frameon=False, fontsize=9)
    return _svg(figure)


def confusion_svg(labels: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """Rows are the true labels, columns the answers; the shade is the share of the row."""
    figure, axes = _figure(1.6 + 0.34 * len(labels))
    shares = [[count / max(sum(row), 1) for count in row] for row in counts]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for number, row in enumerate(counts):
        for column, count in enumerate(row):
            if count:
                ink = "white" if shares[number][column] > 0.6 else _INK
                axes.text(column, number, str(count), ha="center", va="center", fontsize=8, color=ink)
    names = [_plain(label if len(label) <= 24 else f"{label[:23]}…") for label in labels]
    axes.set_xticks(range(len(labels)), names, rotation=90, fontsize=8)
    axes.set_yticks(range(len(labels)), names, fontsize=8)
    axes.set_xlabel("answer")
    axes.set_ylabel("true label")
    axes.tick_params(length=0)
    return _svg(figure)


def attention_svg(looking: Sequence[str], seen: Sequence[str], weights_hls: Any) -> str:
    """The weights of each head (H, L, S) as shades: rows are the tokens that look, columns those looked at."""
    heads, rows, columns = weights_hls.shape
    across = 2 if columns <= 40 else 1
    down = -(-heads // across)
    figure, panels = _figure(down * (0.7 + 7.2 / across * rows / columns), down, across)
    for head, axes in enumerate(panels.flat):
        if head >= heads:
            axes.set_visible(False)
            continue
        axes.imshow(weights_hls[head], cmap="Blues", vmin=0, aspect="auto")
        axes.set_title(f"head {head + 1}", fontsize=9)
        size = max(3.0, min(8.0, 260 / columns / across))
        axes.set_xticks(range(columns), [_plain(token) for token in seen], rotation=90, fontsize=size)
        axes.set_yticks(range(rows), [_plain(token) for token in looking], fontsize=size)
        axes.tick_params(length=0)
    return _svg(figure)


def _plain(token: str) -> str:
    """A token as matplotlib is to draw it: a dollar sign begins no formula."""
    return token.replace("$", r"\$")


def _figure(height: float, down: int = 1, across: int = 1) -> "tuple[Figure, Any]":
    import matplotlib as mpl
    from matplotlib.figure import Figure  # without pyplot: no window system, no global state

    ink = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), _INK)
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": "report", "font.family": "sans-serif", "font.size": 10}
    mpl.rcParams.update(settings | ink | {"axes.edgecolor": "#c9cdd3", "axes.axisbelow": True})
    figure = Figure(figsize=(7.2, height), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False)
    for axes in panels.flat:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels if panels.size > 1 else panels[0, 0]


def _svg(figure: "Figure") -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
