"""Training stages as real processes in a folder of their own, with the shipped params.yaml made small."""

import csv
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from forked import Forked, run_module
from ruamel.yaml import YAML
from tiny import read_json, write_data

REPOSITORY = Path(__file__).parents[1]
PRETRAIN, FINETUNE = ("stages.pretrain",), ("stages.finetune", "translation")
SCRATCH = (*FINETUNE, "--from-scratch")
TRAIN = {"stages.pretrain", "stages.finetune", "stages.overfit", "stages.find_learning_rate"}
STEPS, SAVE_EVERY, VALIDATE_EVERY = 240, 20, 40
CPU = {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto", "precision": "auto", "threads": 1}
SETTINGS: dict[str, dict[str, Any]] = {
    "model": {
        "preset": "small-encoder-decoder",
        "d_model": 32,
        "heads": 4,
        "d_ff": 64,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "max_length": 128,
        "dropout": 0.0,
        "norm": "pre",
    },
    "pretrain": {
        "objective": "span_corruption",
        "corruption_rate": 0.15,
        "mean_span_length": 3.0,
        "whole_words": False,
        "sequence_length": 32,
        "packing": "best_fit",
        "batch_size": 16,
        "steps": STEPS,
        "warmup_steps": 20,
        "checkpoint_every": SAVE_EVERY,
        "validate_every": VALIDATE_EVERY,
        "validation_batches": 3,
        "learning_rate": 2e-3,
        "weight_decay": 0.01,
        "gradient_clip": 1.0,
        "early_stopping_patience": 0,
        **CPU,
    },
    "finetune": {
        "batch_tokens": 600,
        "warmup_steps": 20,
        "checkpoint_every": SAVE_EVERY,
        "validate_every": VALIDATE_EVERY,
        "weight_decay": 0.01,
        "gradient_clip": 1.0,
        "dropout": 0.1,
        "label_smoothing": 0.1,
        "early_stopping_patience": 0,
        **CPU,
    },
}
TIMED = ("tokens_per_second", "share_of_peak")  # differ from run to run
TASK = {"steps": STEPS, "learning_rate": 1e-3, "max_source_tokens": 60, "max_target_tokens": 20}


def set_params(root: Path, seed: int = 1, only: str = "", **changes: dict[str, Any]) -> None:
    """Writes params.yaml: the shipped one, made small; `changes` by section, `task` for all; or `only` one task."""
    yaml = YAML()
    params = yaml.load((REPOSITORY / "params.yaml").read_text(encoding="utf-8"))
    params["seed"] = seed
    for section, values in SETTINGS.items():
        params[section].update(values | changes.get(section, {}))
    for name in list(params["tasks"]):
        params["tasks"][name].update(TASK | changes.get("task", {}))
        if only and name != only:
            del params["tasks"][name], params["data"][name]
    with (root / "params.yaml").open("w", encoding="utf-8") as file:
        yaml.dump(params, file)


def workspace(root: Path, only: str = "", **changes: dict[str, Any]) -> Path:
    root.mkdir()
    write_data(root, only or "translation")
    set_params(root, only=only, **changes)
    return root


def environment_of(changes: dict[str, str]) -> dict[str, str]:
    """This process's for one that trains."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PIPELINE_", "DVC_"))}
    return kept | {
        "PYTHONPATH": os.pathsep.join((str(REPOSITORY), str(REPOSITORY / "tests"))),
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",  # nobody answers there: training does not need anybody to
        "OMP_NUM_THREADS": "1",
        **changes,
    }


def start(
    root: Path, command: tuple[str, ...], fresh: bool = False, **changes: str
) -> "subprocess.Popen[str] | Forked":
    """Starts a stage; `changes` are of its environment. `fresh`: as `python -m`; else what trains is forked."""
    environment = environment_of(changes)
    with (root / "log.txt").open("w") as log:
        if command[0] in TRAIN and not fresh:
            return Forked(root, environment, root / "log.txt", run_module, *command)
        return subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=root,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


@contextmanager
def running(
    root: Path, command: tuple[str, ...], fresh: bool = False, **changes: str
) -> Iterator["subprocess.Popen[str] | Forked"]:
    """A stage at work; whatever is left of it at the end is killed."""
    process = start(root, command, fresh, **changes)
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def finish(root: Path, command: tuple[str, ...], fresh: bool = False, **changes: str) -> str:
    """Runs a stage to its end; returns what it printed."""
    with running(root, command, fresh, **changes) as process:
        status = process.wait(timeout=300)
    log = (root / "log.txt").read_text()
    assert status == 0, log
    return log


def checkpoints(root: Path) -> list[Path]:
    return sorted((root / ".pipeline/checkpoints").glob("*/step-*.ckpt"))


def await_checkpoint(process: "subprocess.Popen[str] | Forked", root: Path, step: int) -> None:
    """Waits until a checkpoint of `step` or later lies there, and then some more."""
    while not any(int(path.stem.removeprefix("step-")) >= step for path in checkpoints(root)):
        assert process.poll() is None, (root / "log.txt").read_text()
        time.sleep(0.005)
    time.sleep(random.Random(step).uniform(0.0, 0.2))


def kill(root: Path, command: tuple[str, ...], step: int = 2 * SAVE_EVERY) -> None:
    with running(root, command) as process:
        await_checkpoint(process, root, step)
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert not list((root / "models").glob("*/training.json")) or command != PRETRAIN


def curve(folder: Path) -> list[dict[str, str]]:
    with (folder / "curve.csv").open(newline="") as file:
        return [{key: value for key, value in row.items() if key not in TIMED} for row in csv.DictReader(file)]


def assert_same_result(got: Path, expected: Path) -> None:
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (got / name).read_bytes() == (expected / name).read_bytes(), name
    assert curve(got) == curve(expected)
    told = [read_json(folder / "training.json") for folder in (got, expected)]
    for values in told:
        for name in (*TIMED, "seconds", "peak_flops", "peak_memory", "resumed_from", "mlflow_run_id"):
            del values[name]
    assert told[0] == told[1], told
