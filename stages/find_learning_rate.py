"""Finds a learning rate: the range test of Smith 2017, arXiv:1506.01186, section 3.3.

For some hundred steps the rate rises exponentially from 1e-6 to 1, from first weights (`pretrain`) or from
models/pretrained (a task). Where the loss falls fastest, the rate is good; where it begins to rise, too high. Prints a
table, names the key of params.yaml to set, and draws reports/learning_rate.svg. Reads data/tokens and data/tokenizer;
writes nothing else. Takes as long as 120 steps of the training.
"""

import argparse
from dataclasses import dataclass, replace
from math import inf, isfinite, log10, sqrt
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from lightning_modules.errors import PipelineError
from stages.console import run_stage, stage_parser
from stages.outputs import whole_file
from stages.params import Params, load_params
from stages.trial import run_trial, trial

LOWEST, HIGHEST, STEPS = 1e-6, 1.0, 120
MEMORY = 0.8  # of the smoothed loss: it looks back some five steps
WINDOW = 21  # steps of a tenfold rise
DIVERGED = 4.0  # times the lowest smoothed loss
PLOT = Path("reports/learning_rate.svg")
ROWS = 12  # of the table


@dataclass(frozen=True)
class Point:
    """A step: the rate it was made with, the loss before it, and that loss smoothed (nats per target token)."""

    rate: float
    loss: float
    smooth: float


@dataclass(frozen=True)
class Finding:
    """Two rates that the test suggests; `diverged`: the one at which it ended, if it did."""

    steepest: float
    tenth: float  # of where it diverged, or else of where the loss was lowest
    diverged: float | None

    @property
    def rate(self) -> float:
        """Between the two."""
        return sqrt(self.steepest * self.tenth)


class RangeTest:
    """Takes losses as they come."""

    def __init__(self) -> None:
        self.points: list[Point] = []
        self.diverged: float | None = None
        self._mean = 0.0

    def rate(self, step: int) -> float:
        """Of a step, from 1."""
        return LOWEST * (HIGHEST / LOWEST) ** ((step - 1) / (STEPS - 1))

    def enough(self, step: int, loss: float) -> bool:
        """Whether the loss before `step` shows that the rates before it were too high."""
        self._mean = MEMORY * self._mean + (1 - MEMORY) * loss
        smooth = self._mean / (1 - MEMORY**step)  # a mean of so few has not its full weight (Adam's correction)
        lowest = min((point.smooth for point in self.points), default=inf)
        if not isfinite(smooth) or smooth > DIVERGED * lowest:
            self.diverged = self.rate(step)
            return True
        self.points.append(Point(self.rate(step), loss, smooth))
        return False

    def finding(self) -> Finding:
        """Raises PipelineError where the loss never fell."""
        lowest = int(np.argmin([point.smooth for point in self.points])) if self.points else 0
        # The slope of a line through the losses of a tenfold rise: those of single steps differ more by their batches.
        # Not of a rise whose middle is beyond the lowest loss: what falls there comes down from a spike.
        losses = np.array([point.loss for point in self.points[: lowest + WINDOW // 2 + 1]])
        windows_NW = sliding_window_view(losses, WINDOW) if len(losses) >= WINDOW else np.empty((0, WINDOW))
        slopes_N = windows_NW @ (np.arange(WINDOW) - (WINDOW - 1) / 2)
        if not len(slopes_N) or slopes_N.min() >= 0:
            raise PipelineError("the loss fell at no learning rate: python -m stages.overfit tells whether it can")
        steepest = self.points[int(slopes_N.argmin()) + WINDOW // 2]
        return Finding(steepest.rate, (self.diverged or self.points[lowest].rate) / 10, self.diverged)


def find_learning_rate(params: Params, name: str) -> None:
    """Runs the test, tells its result and draws it. Raises PipelineError where there is nothing to learn from."""
    tried, test = trial(params, name), RangeTest()
    recipe = replace(tried.recipe, steps=STEPS, schedule="constant", warmup_steps=0, ema_decay=0.0)
    run_trial(tried, recipe, tried.train, test.enough, test.rate)
    found = test.finding()
    print("learning rate   loss   smoothed")
    for point in test.points[:: max(len(test.points) // ROWS, 1)]:
        print(f"{point.rate:13.1e} {point.loss:6.3f} {point.smooth:10.3f}")
    where = "it was lowest" if found.diverged is None else "it diverged"
    with whole_file(PLOT) as path:
        path.write_text(range_svg(test.points, found, name), encoding="utf-8")
    print(
        f"{name}: the loss fell fastest at {found.steepest:.1e}; a tenth of where {where} is {found.tenth:.1e}. "
        f"Set {tried.learning_rate_key} (now {tried.recipe.learning_rate:.1e}) to about {found.rate:.1e}; the curve is "
        f"in {PLOT}"
    )


def range_svg(points: list[Point], found: Finding, name: str) -> str:
    """The loss over the learning rate, with both suggestions."""
    from stages.report_plots import COLOURS, _figure, _svg

    figure, axes = _figure(2.9)
    rates = [log10(point.rate) for point in points]
    axes.plot(rates, [point.loss for point in points], color=COLOURS["baseline"], lw=1, alpha=0.5, label="loss")
    axes.plot(rates, [point.smooth for point in points], color=COLOURS["pretrained"], lw=2, label="smoothed")
    for label, rate, style in (("falls fastest", found.steepest, "-"), ("a tenth", found.tenth, "--")):
        axes.axvline(log10(rate), color=COLOURS["scratch"], lw=1.5, ls=style, label=f"{label}: {rate:.1e}")
    ticks = range(round(log10(LOWEST)), round(log10(HIGHEST)) + 1)
    axes.set_xticks(ticks, [f"1e{tick}" for tick in ticks])
    axes.set_xlabel(f"learning rate ({name})")
    axes.set_ylabel("loss (nats per token)")
    axes.grid(axis="y", color="#e7e9ec")
    axes.legend(frameon=False, fontsize=9)
    return _svg(figure)


def main(arguments: argparse.Namespace) -> None:
    """Runs the test."""
    find_learning_rate(load_params(), arguments.what)


if __name__ == "__main__":
    parser = stage_parser(__doc__)
    parser.add_argument("what", nargs="?", default="pretrain", help="pretrain (the default), or a task of params.yaml")
    run_stage(main, parser)
