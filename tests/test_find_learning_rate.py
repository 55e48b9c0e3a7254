"""The range test: on a function whose highest stable rate is known, and on a real model, as a real process."""

import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from stage_runs import finish, set_params, start, workspace

from lightning_modules.errors import PipelineError
from stages.find_learning_rate import HIGHEST, LOWEST, STEPS, RangeTest
from stages.params import load_params
from stages.trial import run_trial, trial


def descend(curvature: float) -> RangeTest:
    """Noisy gradient descent on curvature · w²/2 + 1, which diverges at rates above 2 / curvature."""
    test, weight, rng = RangeTest(), 3.0, np.random.default_rng(0)
    for step in range(1, STEPS + 1):
        if test.enough(step, curvature * weight**2 / 2 + 1):
            break
        weight -= test.rate(step) * curvature * (weight + rng.normal(0.0, 0.1))
    return test


def test_the_rate_rises_exponentially_from_the_lowest_to_the_highest() -> None:
    test = RangeTest()
    rates = [test.rate(step) for step in range(1, STEPS + 1)]
    assert (rates[0], rates[-1]) == (LOWEST, pytest.approx(HIGHEST))
    ratios = [later / earlier for earlier, later in pairwise(rates)]
    assert max(ratios) == pytest.approx(min(ratios))


@pytest.mark.parametrize("curvature", [30.0, 100.0, 1000.0])
def test_of_a_parabola_it_finds_the_rate_that_diverges_and_suggests_lower_ones(curvature: float) -> None:
    found, highest = descend(curvature).finding(), 2 / curvature
    assert found.diverged is not None
    assert highest < found.diverged < 10 * highest
    assert found.tenth == found.diverged / 10
    assert highest / 100 < found.steepest < highest
    assert min(found.steepest, found.tenth) <= found.rate < highest


def test_a_fall_from_a_spike_beyond_the_lowest_loss_is_no_suggestion() -> None:
    test = RangeTest()
    for step in range(1, STEPS + 1):
        rate = test.rate(step)
        loss = 4.0 - 1.5 * min(rate / 1e-2, 1.0)  # falls until 1e-2
        if rate > 2e-2:
            loss = 7.0 if rate < 6e-2 else 4.0  # leaps, and comes back to where it began
        assert not test.enough(step, loss)
    found = test.finding()
    assert 1e-3 < found.steepest <= 1e-2
    assert 1e-3 <= found.tenth < 2e-3  # the smoothed loss is late by some steps


def test_what_never_falls_suggests_nothing() -> None:
    test = RangeTest()
    for step in range(1, STEPS + 1):
        assert not test.enough(step, 5.0)
    with pytest.raises(PipelineError, match="fell at no learning rate"):
        test.finding()
    test = RangeTest()
    assert test.enough(1, float("nan"))
    with pytest.raises(PipelineError):
        test.finding()


def test_a_process_suggests_a_rate_that_learns_and_writes_nothing_but_the_plot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = workspace(tmp_path / "root")
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    log = finish(root, ("stages.find_learning_rate",))
    told = next(line for line in log.splitlines() if "Set pretrain.learning_rate (now 2.0e-03) to about" in line)
    rate = float(told.split("to about ")[1].split(";")[0])
    after = {path: path.read_bytes() for path in root.rglob("*") if path.is_file() and path.name != "log.txt"}
    plot = root / "reports/learning_rate.svg"
    assert {path for path in after if after[path] != before.get(path)} == {plot}
    ElementTree.parse(plot)

    monkeypatch.chdir(root)
    last = {}
    for times in (1 / 30, 1, 30):
        tried, losses = trial(load_params(), "pretrain"), []
        recipe = replace(tried.recipe, steps=60, learning_rate=times * rate, schedule="constant", warmup_steps=5)

        def keep(step: int, loss: float, losses: list[float] = losses) -> bool:
            losses.append(loss)
            return False

        run_trial(tried, recipe, tried.train, keep)
        assert len(losses) == 60
        last[times] = sum(losses[-10:])
    assert last[1] < last[1 / 30]
    assert last[1] < last[30]


def test_a_task_without_the_model_it_starts_from_is_one_clear_line(tmp_path: Path) -> None:
    root = workspace(tmp_path / "root")
    set_params(root)
    assert start(root, ("stages.find_learning_rate", "translation")).wait(timeout=120) == 1
    log = (root / "log.txt").read_text()
    assert "models/pretrained" in log
    assert "Traceback" not in log
