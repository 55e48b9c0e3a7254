"""`make clean` in a small project, with and without something at work in it."""

import fcntl
from pathlib import Path

import pytest
from toy_project import make_project

from flows.clean import main


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
    assert main() == 0
    told = capsys.readouterr().out.splitlines()
    assert told[:-1] == ["removed out/prepare", "removed reports", "removed .pipeline"]
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
        assert main() == 1
    said = capsys.readouterr()
    assert said.err.startswith(f"error: {who}")
    assert said.out == ""
    assert (project / "out/prepare").exists()
    assert main() == 0, "the lock is there, and nobody holds it"
