"""Trainings killed at random moments, as real processes: what is learnt is what a whole run learns, to the bit.

The moments differ from run to run of these tests; pytest prints the seed with a failure.
"""

import errno
import os
import random
import resource
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from stage_runs import (
    FINETUNE,
    PRETRAIN,
    SCRATCH,
    assert_same_result,
    await_checkpoint,
    checkpoints,
    curve,
    finish,
    running,
    workspace,
)
from tiny import read_json

# All that has a state: dropout, moving and other averages, accumulated gradients, checkpoints and validations that fall
# together now and then. An epoch of the text is 18 batches, so its boundaries are passed, too.
STATEFUL: dict[str, Any] = {
    "accumulate": 3,
    "ema_decay": 0.9,
    "average_checkpoints": 2,
    "checkpoint_every": 4,
    "validate_every": 10,
    "warmup_steps": 5,
}
SHORT = {"steps": 60, "learning_rate": 2e-3}
CASES = {
    "pre-training": (PRETRAIN, "pretrained", {"model": {"dropout": 0.1}, "pretrain": STATEFUL | SHORT}),
    "fine-tuning": (SCRATCH, "translation-scratch", {"finetune": STATEFUL, "task": SHORT}),
    "two processes": (SCRATCH, "translation-scratch", {"finetune": STATEFUL | {"devices": 2}, "task": SHORT}),
}


def kill_after(root: Path, command: tuple[str, ...], seconds: float) -> bool:
    """Kills the stage then, with all its processes; False where it had ended by itself."""
    with running(root, command) as process:
        ends = time.monotonic() + seconds
        while time.monotonic() < ends and process.poll() is None:
            time.sleep(0.01)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        return process.wait() == -signal.SIGKILL


@pytest.mark.parametrize("case", CASES)
def test_killed_at_random_moments_it_learns_the_same_to_the_bit(case: str, tmp_path: Path) -> None:
    command, output, settings = CASES[case]
    seed = random.SystemRandom().randrange(10**6)
    print("seed", seed)
    rng = random.Random(seed)
    whole = workspace(tmp_path / "whole", **settings)
    began = time.monotonic()
    finish(whole, command)
    took = time.monotonic() - began
    root = workspace(tmp_path / "killed", **settings)
    with running(root, command) as process:  # once when there surely is something to go on from
        await_checkpoint(process, root, 4 * rng.randint(1, 8))
        os.killpg(process.pid, signal.SIGKILL)
    kills = [kill_after(root, command, rng.uniform(0.5, 1.0) * took) for _ in range(3)]
    log = finish(root, command)
    assert any(kills) or "going on" not in log
    assert_same_result(root / "models" / output, whole / "models" / output)
    assert read_json(whole / "models" / output / "training.json")["weights"] in ("raw", "ema", "mean")


def test_killed_after_its_last_step_it_tells_the_same_of_itself(tmp_path: Path) -> None:
    settings = {"finetune": STATEFUL, "task": SHORT}
    whole, root = workspace(tmp_path / "whole", **settings), workspace(tmp_path / "killed", **settings)
    finish(whole, SCRATCH)
    with running(root, SCRATCH) as process:
        while not list((root / ".pipeline/checkpoints").glob(f"*/step-*{SHORT['steps']}.ckpt")):
            assert process.poll() is None, (root / "log.txt").read_text()
        os.killpg(process.pid, signal.SIGKILL)
    assert f"going on from step {SHORT['steps']}" in finish(root, SCRATCH)
    assert_same_result(root / "models/translation-scratch", whole / "models/translation-scratch")


def test_killed_while_it_writes_a_checkpoint_it_uses_the_one_before(tmp_path: Path) -> None:
    settings = {"finetune": STATEFUL | {"checkpoint_every": 1}, "task": SHORT}
    whole, root = workspace(tmp_path / "whole", **settings), workspace(tmp_path / "killed", **settings)
    finish(whole, SCRATCH)
    kills = 0
    for step in (3, 20, 40):
        with running(root, SCRATCH) as process:
            await_checkpoint(process, root, step)
            while not (unfinished := list((root / ".pipeline/checkpoints").glob("*/step-*.unfinished"))):
                assert process.poll() is None, (root / "log.txt").read_text()
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        kills += any(path.exists() for path in unfinished)
    assert kills, "no kill fell into a write"
    finish(root, SCRATCH)
    assert_same_result(root / "models/translation-scratch", whole / "models/translation-scratch")


def test_begun_by_two_processes_one_goes_on_with_the_same_records(tmp_path: Path) -> None:
    settings = {"pretrain": SHORT | {"checkpoint_every": 20, "validate_every": 20}}
    two = {"pretrain": settings["pretrain"] | {"devices": 2}}
    one, begun = workspace(tmp_path / "one", **settings), workspace(tmp_path / "two", **two)
    finish(one, PRETRAIN)
    with running(begun, PRETRAIN) as process:
        await_checkpoint(process, begun, 20)
        os.killpg(process.pid, signal.SIGKILL)
    shutil.copyfile(one / "params.yaml", begun / "params.yaml")
    assert "going on from step" in finish(begun, PRETRAIN)
    for rows in zip(*(curve(root / "models/pretrained") for root in (one, begun)), strict=True):
        assert rows[0]["step"] == rows[1]["step"]
        for name in ("train_loss", "validation_loss"):
            if rows[0][name]:
                assert float(rows[1][name]) == pytest.approx(float(rows[0][name]), rel=1e-3)


@pytest.mark.skipif(sys.platform != "linux", reason="limits of another process are Linux's")
def test_a_full_disk_is_one_line_and_what_was_saved_is_gone_on_from(tmp_path: Path) -> None:
    """No file may grow beyond a few bytes less than a checkpoint: the system refuses what a full disk refuses."""
    settings = {"finetune": {"checkpoint_every": 10}, "task": SHORT}
    whole, root = workspace(tmp_path / "whole", **settings), workspace(tmp_path / "full", **settings)
    finish(whole, SCRATCH)
    with running(root, SCRATCH) as process:
        await_checkpoint(process, root, 10)
        limit = checkpoints(root)[0].stat().st_size - 100
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, limit))
        assert process.wait(timeout=60) == 1
    lines = (root / "log.txt").read_text().splitlines()
    error = [line for line in lines if line.startswith("error:")]
    assert error == [lines[-1]]
    assert os.strerror(errno.EFBIG) in error[0]
    assert "what was saved before is kept" in error[0]
    assert [path.name for path in (root / ".pipeline/checkpoints").glob("*/*.unfinished")] == []
    kept = checkpoints(root)[-1].stem.removeprefix("step-")
    assert f"going on from step {int(kept)}" in finish(root, SCRATCH)
    assert_same_result(root / "models/translation-scratch", whole / "models/translation-scratch")


def test_a_fine_tuning_of_pre_trained_weights_killed_at_random_is_the_same(tmp_path: Path) -> None:
    settings = {"pretrain": SHORT | {"steps": 20}, "finetune": STATEFUL, "task": SHORT}
    whole = workspace(tmp_path / "whole", **settings)
    finish(whole, PRETRAIN)
    finish(whole, FINETUNE)
    root = workspace(tmp_path / "killed", **settings)
    shutil.copytree(whole / "models/pretrained", root / "models/pretrained")
    with running(root, FINETUNE) as process:
        await_checkpoint(process, root, 4 * random.SystemRandom().randint(1, 12))
        os.killpg(process.pid, signal.SIGKILL)
    finish(root, FINETUNE)
    assert_same_result(root / "models/translation", whole / "models/translation")
    weights = [load_file(path / "models/translation/model.safetensors") for path in (whole, root)]
    assert weights[0].keys() == weights[1].keys()
