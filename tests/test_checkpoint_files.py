"""Checkpoints on disk: written where they stay, found again, and set aside where they are damaged."""

import errno
import re
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from interruptions import Killed, Moments, assert_same, raise_killed, train
from spikes import plan_of

from lightning_modules import checkpoint_files
from lightning_modules.checkpoint_files import newest_checkpoint
from lightning_modules.errors import PipelineError


def test_a_checkpoint_is_written_where_it_is_to_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of temporary files may be small: here there is none."""
    plan, sizes = plan_of(tmp_path), list[int]()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))

    def beside(path: Path) -> None:
        sizes.append(path.stat().st_size)
        assert path.name.startswith("step-")
        assert path.name.endswith(".ckpt.unfinished")
        real(path)

    real = checkpoint_files.check_readable
    monkeypatch.setattr(checkpoint_files, "check_readable", beside)
    train(plan, tmp_path / "run")
    assert len(sizes) == 4
    assert sizes[-1] == (tmp_path / "run/step-000000008.ckpt").stat().st_size


def test_what_a_killed_process_was_writing_is_cleared_by_the_first_one(tmp_path: Path) -> None:
    (tmp_path / "return-000000002.unfinished").mkdir()
    for name in ("step-000000004.ckpt.unfinished", "best.safetensors.unfinished", ".tmpX7a9Qz", "best.safetensors"):
        (tmp_path / name).touch()
    assert newest_checkpoint(tmp_path, first=False) is None
    assert len(list(tmp_path.iterdir())) == 5
    assert newest_checkpoint(tmp_path) is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.safetensors", "return-000000002.unfinished"]


def test_an_error_that_is_not_the_files_is_not_told_as_such(tmp_path: Path) -> None:
    """A process that loses its peers while they save together, say."""

    class Lost(pl.Callback):
        def on_save_checkpoint(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.global_step == 4:
                raise RuntimeError("Connection closed by peer")

    with pytest.raises(RuntimeError, match=r"^Connection closed by peer$"):
        train(plan_of(tmp_path), tmp_path / "run", Lost())
    assert newest_checkpoint(tmp_path / "run") == tmp_path / "run/step-000000002.ckpt"


def test_a_checkpoint_holds_tensors_and_plain_values_only(tmp_path: Path) -> None:
    train(plan_of(tmp_path), tmp_path / "run")
    newest = newest_checkpoint(tmp_path / "run")
    assert newest is not None
    assert torch.load(newest, weights_only=True)["global_step"] == 8


def cut(whole: bytes, left: int) -> bytes:
    return whole[:left]


def changed(whole: bytes, at: int) -> bytes:
    """One bit of a weight is not what was written."""
    return whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]


@pytest.mark.parametrize(
    "damaged",
    [*(partial(cut, left=left) for left in (0, 1, 1000, -1000)), *(partial(changed, at=at) for at in (2000, -3000))],
    ids=lambda damaged: f"{damaged.func.__name__}{damaged.keywords}",
)
def test_a_damaged_checkpoint_is_named_and_set_aside(
    damaged: Callable[[bytes], bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, folder = plan_of(tmp_path), tmp_path / "run"
    expected = train(plan, tmp_path / "whole")
    with pytest.raises(Killed):
        train(plan, folder, after=(Moments(20, raise_killed),))
    newest, before = sorted(folder.glob("step-*.ckpt"), reverse=True)
    newest.write_bytes(damaged(newest.read_bytes()))
    capsys.readouterr()
    assert newest_checkpoint(folder) == before
    assert str(newest) in capsys.readouterr().out
    assert newest.with_suffix(".damaged").exists()
    assert_same(train(plan, folder), expected)


def test_damaged_ones_do_not_pile_up(tmp_path: Path) -> None:
    plan, folder = plan_of(tmp_path), tmp_path / "run"
    folder.mkdir()
    for step in (1, 2, 3):
        (folder / f"step-{step:09d}.damaged").touch()
    train(plan, folder)
    assert {path.name for path in folder.glob("*.damaged")} == {f"step-{step:09d}.damaged" for step in (2, 3)}


@pytest.mark.parametrize("error", [OSError(errno.ESTALE, "Stale file handle"), MemoryError("no room")], ids=str)
def test_where_the_system_cannot_read_now_nothing_is_set_aside(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    train(plan_of(tmp_path), folder)
    before = sorted(folder.iterdir())

    def fail(path: Path) -> None:
        raise error

    monkeypatch.setattr(checkpoint_files, "check_readable", fail)
    with pytest.raises(PipelineError, match=re.escape(f"cannot be read now ({error})")):
        newest_checkpoint(folder)
    assert sorted(folder.iterdir()) == before


def test_two_processes_that_find_the_same_damage_use_the_same_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have looked before either sets the file aside."""
    plan, folder, looked, real = (
        plan_of(tmp_path),
        tmp_path / "run",
        Barrier(2),
        checkpoint_files.check_readable,
    )
    train(plan, folder)
    before, newest = sorted(folder.glob("step-*.ckpt"))
    newest.write_bytes(newest.read_bytes()[:1000])

    def together(path: Path) -> None:
        if path == newest:
            looked.wait(timeout=300)
        real(path)

    monkeypatch.setattr(checkpoint_files, "check_readable", together)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(partial(newest_checkpoint, folder), (True, False))) == [before, before]
    assert newest.with_suffix(".damaged").exists()


def test_without_any_readable_checkpoint_it_starts_anew(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "nowhere") is None
    (tmp_path / "step-000000004.ckpt").write_bytes(b"PK\x03\x04 not a checkpoint")
    assert newest_checkpoint(tmp_path) is None
