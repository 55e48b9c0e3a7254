"""Warnings: given where they are due, once, with numbers that are true; not given where they are not."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from interruptions import Plan, train
from spikes import guard, plan_of
from tiny import pairs_split, rows_split

from lightning_modules.advice import GapWarning, repetition
from lightning_modules.batching import Batch


def test_a_model_that_learns_by_heart_is_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Forty pairs, again and again; the validation is over others."""

    class Apart:
        def __init__(self, root: Path) -> None:
            self.train, self.other = pairs_split(root / "few"), rows_split(root / "rows", objective="prefix_lm")
            self.batches_per_epoch, self.bytes_per_target = self.train.batches_per_epoch, None

        def training_batch(self, number: int, part: int, parts: int) -> Batch:
            return self.train.training_batch(number % 2, part, parts)

        def validation_batches(self, part: int, parts: int) -> Iterator[Batch]:
            return self.other.validation_batches(part, parts)

    plan = Plan(Apart(tmp_path), steps=80, save_every=40, validate_every=10, learning_rate=1e-2)
    folder = tmp_path / "run"
    step_guard = guard(folder, plan)
    result = train(plan, folder, step_guard, GapWarning(step_guard))
    lines = [line for line in capsys.readouterr().out.splitlines() if "by heart" in line]
    assert len(lines) == 1
    told = int(lines[0].split("at step ")[1].split()[0])
    losses = {row["step"]: row["validation_loss"] for row in result.curve if "validation_loss" in row}
    trained = [row["train_loss"] for row in result.curve if "train_loss" in row and told - 10 < row["step"] <= told]
    assert losses[told] > 1.1 * np.mean(trained)
    assert losses[told] > min(loss for step, loss in losses.items() if step < told)


def test_a_model_that_learns_is_not_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, folder = plan_of(tmp_path, steps=20), tmp_path / "run"
    step_guard = guard(folder, plan)
    train(plan, folder, step_guard, GapWarning(step_guard))
    assert "by heart" not in capsys.readouterr().out


def test_more_than_four_epochs_are_told_with_the_key_and_the_numbers() -> None:
    assert repetition("pretrain", 400, 100) is None
    warning = repetition("pretrain", 1000, 100)
    assert warning is not None
    assert "pretrain.steps 1000" in warning
    assert "10.0 times" in warning
    assert "400 steps" in warning
