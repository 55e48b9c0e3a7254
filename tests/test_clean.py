"""`make clean` in a small project, with and without something at work in it."""

import fcntl
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from toy_project import ROOT, make_project

from flows.clean import clean
from lightning_modules.errors import PipelineError


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project that has made an output, a report and working state."""
    make_project(tmp_path)
    for made in ("out/prepare", "reports/report.html", ".pipeline/checkpoints/step", ".pipeline/prefect/prefect.db"):
        (tmp_path / made).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / made).write_text("made")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_was_made_goes_and_what_is_yours_stays(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = ("dvc.yaml", "params.yaml", "work.py", "mode")
    before = [(project / name).read_bytes() for name in own]
    clean(project)
    told = capsys.readouterr().out.splitlines()
    assert told == ["removed out/prepare", "removed reports", "removed .pipeline"]
    assert not any((project / name).exists() for name in ("out/prepare", "reports", ".pipeline"))
    assert [(project / name).read_bytes() for name in own] == before


@pytest.mark.parametrize(
    ("lock", "how", "who"),
    [
        (".pipeline/sweeps/rates/lock", fcntl.LOCK_EX, "the sweep rates is at work"),
        (".pipeline/prefect/users", fcntl.LOCK_SH, "make serve-flows, make sweep or make demo is at work"),
    ],
)
def test_nothing_goes_while_a_sweep_or_a_server_is_at_work(
    project: Path, capsys: pytest.CaptureFixture[str], lock: str, how: int, who: str
) -> None:
    (project / lock).parent.mkdir(parents=True, exist_ok=True)
    with (project / lock).open("a") as held:
        fcntl.flock(held, how)
        with pytest.raises(PipelineError, match=who):
            clean(project)
    assert capsys.readouterr().out == ""
    assert (project / "out/prepare").exists()
    clean(project)  # the lock is there, and nobody holds it
    assert not (project / "out/prepare").exists()


def command(project: Path, *arguments: str, reader: str = "cat") -> "subprocess.CompletedProcess[str]":
    """`make clean`, read by a program."""
    clean_command = shlex.join([sys.executable, "-m", "flows.clean", *arguments])
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {clean_command} | {reader}"],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(("argument", "status"), [("--help", 0), ("--dry-run", 2)])
def test_who_asks_for_help_loses_nothing(project: Path, argument: str, status: int) -> None:
    asked = command(project, argument)
    assert asked.returncode == status
    assert "usage: python -m flows.clean" in asked.stdout + asked.stderr
    assert all((project / name).exists() for name in ("out/prepare", "reports", ".pipeline"))


def test_a_reader_who_leaves_ends_no_work_half_done(project: Path) -> None:
    asked = command(project, reader="true")
    assert (asked.returncode, asked.stderr) == (0, "")
    assert not any((project / name).exists() for name in ("out/prepare", "reports", ".pipeline"))
