"""One batch learnt by heart, or not: as real processes, on data that can be learnt and on data that cannot."""

from pathlib import Path

import numpy as np
from stage_runs import PRETRAIN, finish, set_params, start, workspace
from tiny import sha256, write_store

ONE_BATCH = {"learning_rate": 5e-3, "batch_size": 8}


def failing(root: Path, *arguments: str) -> str:
    """Ends with status 1; the last line."""
    assert start(root, ("stages.overfit", *arguments)).wait(timeout=300) == 1
    log = (root / "log.txt").read_text()
    assert "Traceback" not in log
    return log.splitlines()[-1]


def test_a_batch_that_can_be_learnt_is_and_nothing_is_written(tmp_path: Path) -> None:
    root = workspace(tmp_path / "root", model={"dropout": 0.5}, pretrain=ONE_BATCH)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    told = finish(root, ("stages.overfit",)).splitlines()[-1]
    assert told.startswith("pretrain: learnt one batch by heart: the loss fell from ")
    first, last = (float(told.split(word)[1].split()[0]) for word in (" from ", " to "))
    assert last < max(0.05 * first, 0.1)
    after = {path: path.read_bytes() for path in root.rglob("*") if path.is_file() and path.name != "log.txt"}
    assert after == before


def test_a_learning_rate_too_low_or_too_high_is_named_with_its_key(tmp_path: Path) -> None:
    root = workspace(tmp_path / "root", pretrain={"learning_rate": 1e-7})
    line = failing(root)
    assert line.startswith("error: pretrain: one batch was not learnt by heart")
    assert "a higher pretrain.learning_rate (now 1e-07)" in line
    set_params(root, pretrain={"learning_rate": 1e30})
    assert "lower pretrain.learning_rate (now 1e+30)" in failing(root, "pretrain")


def test_labels_that_contradict_each_other_cannot_be_learnt_from_a_pretrained_model(tmp_path: Path) -> None:
    """The same source every time, another target each time."""
    root = workspace(tmp_path / "root", pretrain={"steps": 4, "warmup_steps": 1}, task={"learning_rate": 5e-3})
    finish(root, PRETRAIN)
    assert "translation: learnt one batch by heart" in finish(root, ("stages.overfit", "translation"))
    rng, digest = np.random.default_rng(0), sha256(root / "data/tokenizer/tokenizer.json")
    folder = root / "data/tokens/translation/train"
    write_store(folder / "source", [[100, 101, 102, 103]] * 100, digest)
    write_store(folder / "target", rng.integers(100, 500, (100, 4)).tolist(), digest)
    line = failing(root, "translation")
    assert "tasks.translation.learning_rate" in line
    assert "labels and masks" in line


def test_an_unknown_task_is_one_clear_line(tmp_path: Path) -> None:
    assert "no task 'nothing' in params.yaml" in failing(workspace(tmp_path / "root"), "nothing")
