"""Where a training's checkpoints are: another folder for other parameters or text, and one process at a time in it."""

import os
import re
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
import pytest
from forked import Forked
from tiny import recipe

from lightning_modules.errors import PipelineError
from stages import training_job
from stages.params import load_params
from stages.tokenize import Tokens, _write_store
from stages.training_job import Job


def job_of(tokens: Path, **settings: Any) -> Job:
    return Job(
        name="pretrain",
        output=Path("models/pretrained"),
        section=load_params(Path(__file__).parents[1] / "params.yaml").pretrain,
        recipe=recipe(),
        settings=settings,
        tokens=tokens,
        inputs=[tokens],
        limits={},
        tokenizer_file=Path("tokenizer.json"),
        cut={},
        same_shapes=True,
    )


def store(folder: Path, ids: list[int], lengths: list[int]) -> Path:
    _write_store(folder, iter([Tokens(np.array(ids, dtype=np.uint32), lengths, 1)]), 600, "f" * 64)
    return folder


def hold(root: Path) -> None:
    os.chdir(root)
    with job_of(root / "tokens").alone():
        (root / "held").touch()
        sleep(600)


@pytest.fixture
def holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Forked]:
    """A process that trains, in the present folder."""
    monkeypatch.chdir(tmp_path)
    store(tmp_path / "tokens", [7, 8, 9], [3])
    process = Forked(tmp_path, dict(os.environ), tmp_path / "log.txt", hold, tmp_path)
    while not (tmp_path / "held").exists():
        assert process.poll() is None, (tmp_path / "log.txt").read_text()
        sleep(0.01)
    yield process
    if process.poll() is None:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()


def test_only_one_process_trains_the_same_at_a_time(
    holder: Forked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(tmp_path / "tokens")
    monkeypatch.setattr(training_job, "PATIENCE", 0.2)
    told = re.escape(f"pretrain is being trained by process {holder.pid} already")
    with pytest.raises(PipelineError, match=told), job.alone():
        pass
    with replace(job, name="finetune@translation").alone():
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with job.alone():
        pass


def test_a_change_anywhere_in_the_text_is_another_training(tmp_path: Path) -> None:
    """Also behind the first mebibyte, with as many tokens and documents."""
    ids, lengths = [7] * 2**20, [2**19, 2**19]
    stores = {
        "same": (ids, lengths),
        "as before": (ids, lengths),
        "another token": ([*ids[:-1], 8], lengths),
        "cut elsewhere": (ids, [2**19 - 1, 2**19 + 1]),
    }
    found = {}
    for name, content in stores.items():
        tokens = store(tmp_path / "tokens", *content)
        found[name] = job_of(tokens).checkpoints
        tokens.rename(tmp_path / name)
    assert found["same"] == found["as before"]
    assert len(set(found.values())) == 3


def test_free_settings_are_gone_on_with_and_other_folders_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job = job_of(store(tmp_path / "tokens", [7], [1]), steps=10, devices=1)
    other = job_of(job.tokens, steps=20, devices=1)
    assert job_of(job.tokens, steps=10, devices=2).checkpoints == job.checkpoints != other.checkpoints
    for folder in (job.checkpoints, other.checkpoints, other.checkpoints.with_suffix(".removed")):
        folder.mkdir(parents=True)
        (folder / "step-000000002.ckpt").touch()
    assert job.others == [other.checkpoints]
    assert replace(job, name="finetune@translation").others == []
