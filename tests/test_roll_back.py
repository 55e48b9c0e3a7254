"""Trainings that go back to a checkpoint where the loss spikes, killed, stopped and taken up again meanwhile."""

import inspect
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from interruptions import Killed, Moments, assert_same, raise_killed, send_sigterm, train
from spikes import SOON, roll, spiky
from stage_runs import REPOSITORY
from tiny import read_json

from lightning_modules import guards, roll_back
from lightning_modules.checkpoint_files import newest_checkpoint
from lightning_modules.errors import PipelineError
from lightning_modules.guards import TrainingFailed
from lightning_modules.roll_back import ReturnPoint, Skipping, batch_number, spikes


@pytest.fixture(autouse=True)
def _soon_warm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SOON.items():
        monkeypatch.setattr(guards, name, value)


@given(gone=st.sets(st.integers(0, 30)), step=st.integers(0, 30))
def test_the_batches_that_are_read_are_those_not_left_out_in_order(gone: set[int], step: int) -> None:
    kept = [number for number in range(100) if number not in gone]
    assert batch_number(step, sorted(gone)) == kept[step]


def test_rolling_back_trains_as_if_the_batches_left_out_had_never_been(tmp_path: Path) -> None:
    plan, folder = spiky(tmp_path, {6}), tmp_path / "run"
    result = roll(plan, folder)
    assert [(spike.step, spike.batches) for spike in spikes(folder)] == [(7, [6])]
    without = replace(plan, split=Skipping(plan.split, [6]))
    assert_same(result, train(without, tmp_path / "without"))


@pytest.mark.parametrize("spoilt", [{5, 9}, {7, 8, 9}], ids=["apart", "in-a-row"])
def test_killed_now_and_then_a_rolled_back_training_ends_the_same(spoilt: set[int], tmp_path: Path) -> None:
    plan = spiky(tmp_path, spoilt, save_every=3, validate_every=2)
    expected = roll(plan, tmp_path / "whole", moments := Moments())
    found = spikes(tmp_path / "whole")
    assert spoilt <= {number for spike in found for number in spike.batches}
    for at in range(1, moments.passed + 1, 7):
        folder = tmp_path / f"killed-{at}"
        with pytest.raises(Killed):
            roll(plan, folder, Moments(at, raise_killed))
        assert_same(roll(plan, folder), expected)
        assert spikes(folder) == found


def test_stopped_now_and_then_a_rolled_back_training_ends_the_same(tmp_path: Path) -> None:
    plan = spiky(tmp_path, {6, 9}, save_every=3, validate_every=2)
    expected = roll(plan, tmp_path / "whole", moments := Moments())
    for at in range(1, moments.passed + 1, 7):
        folder, more = tmp_path / f"stopped-{at}", Moments(at, send_sigterm)
        result = roll(plan, folder, more)
        later = 3
        while result.stopped:  # and again some moments later: such checkpoints push the others out
            result = roll(plan, folder, Moments(later, send_sigterm))
            later += 1  # a validation that is broken off each time would never end
        assert_same(result, expected)
        assert spikes(folder) == spikes(tmp_path / "whole")


def test_killed_between_any_two_changes_to_its_files_it_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that going back and its preparation make."""
    plan, changes = spiky(tmp_path, {6}, steps=8, save_every=3, validate_every=2), 0
    kill_at = 0
    for name in ("link", "mkdir", "replace", "rmdir", "unlink"):
        known = getattr(os, name)

        def change(*arguments: Any, real: Any = known, **named: Any) -> None:
            nonlocal changes
            if any(frame.filename == roll_back.__file__ for frame in inspect.stack(context=0)):
                changes += 1
                if changes == kill_at:
                    raise Killed
            real(*arguments, **named)

        monkeypatch.setattr(os, name, change)
    expected, made = roll(plan, tmp_path / "whole"), changes
    assert made > 20
    for kill_at in range(1, made + 1):
        folder, changes = tmp_path / f"killed-{kill_at}", 0
        with pytest.raises(Killed):
            roll(plan, folder)
        kill_at = 0
        assert_same(roll(plan, folder), expected)
        assert spikes(folder) == spikes(tmp_path / "whole")


def test_a_best_validation_that_was_rolled_back_does_not_stay(tmp_path: Path) -> None:
    """Validated at every step, saved at every fourth: the best weights before the spike are of the way not taken."""
    plan, folder = spiky(tmp_path, {6}, steps=7, save_every=4, validate_every=1), tmp_path / "run"
    result = roll(plan, folder)
    assert [spike.batches for spike in spikes(folder)] == [[4, 5, 6]]
    assert_same(result, train(replace(plan, split=Skipping(plan.split, [4, 5, 6])), tmp_path / "without"))


def test_gone_back_behind_a_damaged_checkpoint_the_best_weights_are_those_of_then(tmp_path: Path) -> None:
    """Validated at every step, the best weights are of step 5 when the checkpoint of step 4 is gone on from."""
    plan, folder = spiky(tmp_path, {6}, save_every=2, validate_every=1, steps=8), tmp_path / "run"
    expected = roll(plan, tmp_path / "whole")
    with pytest.raises(Killed):
        roll(plan, folder, Moments(43, raise_killed))  # in step 6
    newest = newest_checkpoint(folder)
    assert newest == folder / "step-000000004.ckpt"
    first = folder / "return-000000002/best.safetensors"
    then = first.read_bytes()
    assert (folder / "best.safetensors").read_bytes() != then
    damaged = bytearray(newest.read_bytes())
    damaged[2000] ^= 1
    newest.write_bytes(damaged)
    assert newest_checkpoint(folder) == folder / "step-000000002.ckpt"
    with pytest.raises(Killed):
        roll(plan, folder, Moments(4, raise_killed))
    assert first.read_bytes() == then
    assert_same(roll(plan, folder), expected)


def test_what_is_kept_of_steps_gone_back_behind_is_of_another_way(tmp_path: Path) -> None:
    back = ReturnPoint(tmp_path, 2)
    for step in (2, 4):
        (tmp_path / f"step-{step:09d}.ckpt").write_text("first")
        back.keep(step)
    back.go_back(2)
    (tmp_path / "step-000000004.ckpt").write_text("second")
    back.keep(4)
    assert (tmp_path / "return-000000004/step-000000004.ckpt").read_text() == "second"


def test_a_return_point_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "return-000000002.unfinished").touch()  # in the place of a folder
    with pytest.raises(PipelineError, match=r"return-000000002 cannot be written \(.* GB free") as caught:
        ReturnPoint(tmp_path, 2).keep(2)
    assert "\n" not in str(caught.value)


def test_after_too_many_roll_backs_it_gives_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "MAX_ROLL_BACKS", 2)
    plan, folder = spiky(tmp_path, set(range(6, 40))), tmp_path / "run"
    for _ in range(2):  # a rerun gives up, too
        with pytest.raises(TrainingFailed, match="after 2 others that were rolled back"):
            roll(plan, folder)
        assert len(spikes(folder)) == 2


def test_two_processes_roll_back_together(tmp_path: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "tests/spikes.py"), str(tmp_path / "two")]
    environment = os.environ | {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY}/tests", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    one = roll(spiky(tmp_path / "one", {6, 9}, save_every=3, validate_every=2), tmp_path / "one/run")
    two = read_json(tmp_path / "two/result.json")
    assert spikes(tmp_path / "two/run") == spikes(tmp_path / "one/run")
    assert two["steps"] == one.steps
    assert two["losses"] == pytest.approx([row["train_loss"] for row in one.curve if "train_loss" in row], rel=0.02)
