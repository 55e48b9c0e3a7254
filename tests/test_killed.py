"""Trainings killed at random moments, as real processes: what is learnt is what a whole run learns, to the bit.

The moments differ from run to run of these tests; pytest prints the seed with a failure.
"""

import errno
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import psutil
import pytest
import torch
from forked import Forked, run_module
from processes import end_group, eventually
from safetensors.torch import load_file
from stage_runs import (
    FINETUNE,
    PRETRAIN,
    SCRATCH,
    assert_same_result,
    await_checkpoint,
    checkpoints,
    curve,
    environment_of,
    finish,
    running,
    workspace,
)
from tiny import read_json

# All that has a state: dropout, moving and other averages, accumulated gradients, checkpoints and validations that fall
# together now and then.
STATEFUL: dict[str, Any] = {
    "accumulate": 3,
    "ema_decay": 0.9,
    "average_checkpoints": 2,
    "checkpoint_every": 4,
    "validate_every": 10,
    "warmup_steps": 5,
}
SHORT = {"steps": 60, "learning_rate": 2e-3}
EPOCH = 15  # batches of the text
Settings = dict[str, Any]


def pre_training(**changes: Any) -> Settings:
    return {"model": {"dropout": 0.1}, "pretrain": STATEFUL | SHORT | changes}


def fine_tuning(**changes: Any) -> Settings:
    return {"finetune": STATEFUL | changes, "task": SHORT}


# A stage, its output, its settings, the steps from a checkpoint to the next: those of the first lie between epochs.
CASES = {
    "pre-training": (PRETRAIN, "pretrained", pre_training(checkpoint_every=EPOCH), EPOCH),
    "in half precision": (PRETRAIN, "pretrained", pre_training(checkpoint_every=EPOCH, precision="bf16-mixed"), EPOCH),
    "fine-tuning": (SCRATCH, "translation-scratch", fine_tuning(), 4),
    "two processes": (SCRATCH, "translation-scratch", fine_tuning(devices=2), 4),
}
Undisturbed = Callable[[tuple[str, ...], Settings], tuple[Path, float]]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """Makes a workspace in which a stage ran that nobody killed, the same for all tests, and says how long it took."""
    made: dict[str, tuple[Path, float]] = {}

    def make(command: tuple[str, ...], settings: Settings) -> tuple[Path, float]:
        key = json.dumps([command, settings])
        if key not in made:
            root = workspace(tmp_path_factory.mktemp("whole") / "whole", **settings)
            began = time.monotonic()
            finish(root, command)
            made[key] = root, time.monotonic() - began
        return made[key]

    return make


def kill_after(root: Path, command: tuple[str, ...], seconds: float) -> None:
    """Kills the stage then, with all its processes, unless it has ended by itself."""
    with running(root, command) as process:
        ends = time.monotonic() + seconds
        while time.monotonic() < ends and process.poll() is None:
            time.sleep(0.01)


@pytest.mark.parametrize("case", CASES)
def test_killed_at_random_moments_it_learns_the_same_to_the_bit(
    case: str, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    command, output, settings, every = CASES[case]
    seed = random.SystemRandom().randrange(10**6)
    print("seed", seed)
    rng = random.Random(seed)
    whole, took = undisturbed(command, settings)
    root = workspace(tmp_path / "killed", **settings)
    kill_after(root, command, rng.uniform(0.1, 1.0) * took)
    with running(root, command) as process:  # once more when there surely is something to go on from
        await_checkpoint(process, root, every * rng.randint(1, 32 // every))
    assert "going on from step" in finish(root, command, fresh=True)
    assert_same_result(root / "models" / output, whole / "models" / output)
    told = read_json(root / "models" / output / "training.json")
    assert told["resumed_from"] % every == 0 < told["resumed_from"]
    assert told["weights"] in ("raw", "ema", "mean")


def test_killed_after_its_last_step_it_tells_the_same_of_itself(undisturbed: Undisturbed, tmp_path: Path) -> None:
    """It is saved whatever `checkpoint_every` is: there are validations yet to come."""
    settings = fine_tuning(checkpoint_every=25)
    whole, root = undisturbed(SCRATCH, settings)[0], workspace(tmp_path / "killed", **settings)
    with running(root, SCRATCH) as process:
        while not list((root / ".pipeline/checkpoints").glob(f"*/step-*{SHORT['steps']}.ckpt")):
            assert process.poll() is None, (root / "log.txt").read_text()
    assert f"going on from step {SHORT['steps']}" in finish(root, SCRATCH)
    assert_same_result(root / "models/translation-scratch", whole / "models/translation-scratch")


@pytest.mark.skipif(sys.platform != "linux", reason="says of a process when it has stopped")
@pytest.mark.parametrize(
    ("command", "output", "settings"),
    [
        (PRETRAIN, "pretrained", pre_training(checkpoint_every=1, steps=30)),
        (SCRATCH, "translation-scratch", fine_tuning(checkpoint_every=1) | {"task": SHORT | {"steps": 30}}),
    ],
    ids=["pre-training", "fine-tuning"],
)
def test_killed_while_it_writes_a_checkpoint_it_uses_the_one_before(
    command: tuple[str, ...], output: str, settings: Settings, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    whole, root = undisturbed(command, settings)[0], workspace(tmp_path / "killed", **settings)
    process = Forked(root, environment_of({}), root / "log.txt", stop_in_a_write, 8, *command)
    try:
        eventually(lambda: process.poll() is not None or psutil.Process(process.pid).status() == psutil.STATUS_STOPPED)
        assert process.poll() is None, (root / "log.txt").read_text()
        [unfinished] = (root / ".pipeline/checkpoints").glob("*/step-*.unfinished")
        before = checkpoints(root)[-1]
        assert (before.stem, unfinished.stem) == ("step-000000007", "step-000000008.ckpt")
        assert 0 < unfinished.stat().st_size < 0.6 * before.stat().st_size
    finally:
        end_group(process.pid)
        process.wait()
    log = finish(root, command)
    assert "going on from step 7 " in log
    assert "cannot be read" not in log
    assert_same_result(root / "models" / output, whole / "models" / output)


def stop_in_a_write(step: int, *command: str) -> None:
    """A stage that stops, as if by SIGSTOP, when it has written half of the checkpoint of a step."""
    save = torch.save

    def save_half(checkpoint: dict[str, Any], file: BinaryIO) -> None:
        save(checkpoint, whole := io.BytesIO())
        if checkpoint["global_step"] == step:
            file.write(whole.getvalue()[: whole.tell() // 2])
            file.flush()
            os.kill(os.getpid(), signal.SIGSTOP)
        file.write(whole.getvalue())

    torch.save = save_half
    run_module(*command)


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
@pytest.mark.parametrize("what", [".ckpt", "best.safetensors"])
def test_a_full_disk_is_one_line_and_what_was_saved_is_gone_on_from(
    what: str, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """No file may grow beyond a few bytes less than such a one: the system refuses what a full disk refuses."""
    settings = {"finetune": {"checkpoint_every": 10, "validate_every": 5}, "task": SHORT | {"steps": 40}}
    whole, root = undisturbed(SCRATCH, settings)[0], workspace(tmp_path / "full", **settings)
    with running(root, SCRATCH) as process:
        if what == ".ckpt":
            await_checkpoint(process, root, 10)
            size = checkpoints(root)[0].stat().st_size
        else:  # the first of them is written before any checkpoint is
            size = (whole / "models/translation-scratch/model.safetensors").stat().st_size
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size - 100, size - 100))
        assert process.wait(timeout=300) == 1
    lines = (root / "log.txt").read_text().splitlines()
    error = [line for line in lines if line.startswith("error:")]
    assert error == [lines[-1]]
    assert f"{what} cannot be written" in error[0]
    assert os.strerror(errno.EFBIG) in error[0]
    assert "what was saved before is kept" in error[0]
    left = {path.suffix for path in (root / ".pipeline/checkpoints").glob("*/*")}
    assert left <= {".ckpt", ".safetensors", ""}
    kept = [f"going on from step {int(path.stem.removeprefix('step-'))} " for path in checkpoints(root)[-1:]]
    assert len(kept) == (what == ".ckpt")
    log = finish(root, SCRATCH)
    assert all(words in log for words in kept)
    assert_same_result(root / "models/translation-scratch", whole / "models/translation-scratch")


@pytest.mark.skipif(sys.platform != "linux", reason="limits of another process are Linux's")
def test_of_two_processes_the_one_that_meets_a_full_disk_says_why(tmp_path: Path) -> None:
    settings = {"finetune": {"checkpoint_every": 10, "validate_every": 20, "devices": 2}, "task": SHORT}
    root = workspace(tmp_path / "full", **settings)
    with running(root, SCRATCH) as process:
        await_checkpoint(process, root, 10)
        size = checkpoints(root)[0].stat().st_size
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size - 100, size - 100))
        assert process.wait(timeout=300) == 1
    log = (root / "log.txt").read_text()
    assert "Traceback" not in log
    errors = [line for line in log.splitlines() if line.startswith("error:")]
    why = [line for line in errors if ".ckpt cannot be written" in line and os.strerror(errno.EFBIG) in line]
    assert len(why) == 1
    assert [line for line in errors if line not in why and "the other processes are gone" not in line] == []


def test_without_its_best_weights_no_others_are_taken_for_them(tmp_path: Path) -> None:
    settings = {"finetune": {"checkpoint_every": 20, "validate_every": 20}, "task": SHORT}
    root = workspace(tmp_path / "root", **settings)
    with running(root, SCRATCH) as process:
        while not list((root / ".pipeline/checkpoints").glob(f"*/step-*{SHORT['steps']}.ckpt")):
            assert process.poll() is None, (root / "log.txt").read_text()
    [best] = (root / ".pipeline/checkpoints").glob("*/best.safetensors")
    best.unlink()
    with running(root, SCRATCH) as process:
        assert process.wait(timeout=300) == 1
    assert "error: the best weights of this training cannot be read" in (root / "log.txt").read_text()
    assert not (root / "models/translation-scratch").exists()


def test_a_fine_tuning_of_pre_trained_weights_killed_at_random_is_the_same(tmp_path: Path) -> None:
    settings = {"pretrain": SHORT | {"steps": 20}, "finetune": STATEFUL, "task": SHORT}
    whole = workspace(tmp_path / "whole", **settings)
    finish(whole, PRETRAIN)
    finish(whole, FINETUNE)
    root = workspace(tmp_path / "killed", **settings)
    shutil.copytree(whole / "models/pretrained", root / "models/pretrained")
    with running(root, FINETUNE) as process:
        await_checkpoint(process, root, 4 * random.SystemRandom().randint(1, 8))
        os.killpg(process.pid, signal.SIGKILL)
    assert "going on from step" in finish(root, FINETUNE)
    assert read_json(root / "models/translation/training.json")["resumed_from"] % 4 == 0
    assert_same_result(root / "models/translation", whole / "models/translation")
    weights = [load_file(path / "models/translation/model.safetensors") for path in (whole, root)]
    assert weights[0].keys() == weights[1].keys()
