"""What stages print, as their runs in a real SQLite store keep it: processes that end well, fail, and are killed."""

import io
import logging
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from mlflow_tools import client, python, runs
from toy_project import ROOT
from tqdm import tqdm

from stages import stage_log
from stages.tracking import flush, stage_run
from stages.tracking_store import tracking_uri

STAGE = """
    import logging, os, signal
    # as a library does it when it is imported, before the stage begins
    logging.getLogger("library").addHandler(logging.StreamHandler())
    from lightning_modules.errors import PipelineError
    from stages.console import progress, run_stage, stage_parser
    from stages.tracking import stage_run

    def main(arguments):
        print("before the run")
        with stage_run("prepare"):
            logging.getLogger("library").warning("from a library")
            for _ in progress(range(3), name="prepare", unit="record"):
                pass
            if arguments.mode == "wrong input":
                raise PipelineError("params.yaml, line 3: wrong")
            if arguments.mode == "defect":
                raise ValueError("no such luck")
            if arguments.mode == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
        print("after the run")

    parser = stage_parser(None)
    parser.add_argument("mode")
    run_stage(main, parser)
"""


def log_of(study: Path, mode: str) -> list[str]:
    """The log that the stage's run has, without its first line."""
    python(study, STAGE, mode)
    flush()  # what a killed one left
    uri = tracking_uri(study)
    path = client(uri).download_artifacts(runs(uri)["prepare"].info.run_id, "log.txt", str(study))
    first, *lines = Path(path).read_text(encoding="utf-8").splitlines()
    assert first.startswith("--- prepare, ")
    return lines


@pytest.mark.parametrize(
    ("mode", "status", "last"),
    [
        ("", "FINISHED", "after the run"),
        ("wrong input", "FAILED", "error: params.yaml, line 3: wrong"),
        ("defect", "FAILED", "ValueError: no such luck"),
        ("killed", "KILLED", None),
    ],
)
def test_a_run_keeps_what_its_stage_printed(study: Path, mode: str, status: str, last: str | None) -> None:
    lines = log_of(study, mode)
    assert runs(tracking_uri(study))["prepare"].info.status == status
    assert lines[:2] == ["before the run", "from a library"]
    assert [line for line in lines if "| 3.00/3.00 [" in line], "the bar's last state"
    assert len([line for line in lines if line.startswith("prepare: ")]) <= 2, "of the bar its first state and its last"
    if last:
        assert last in lines[-4:]  # MLflow adds where the run is to be seen


def test_a_run_without_a_stage_of_its_own_keeps_no_log(study: Path) -> None:
    with stage_run("prepare") as run:
        print("in a notebook")
    assert client(tracking_uri(study)).list_artifacts(run.run_id) == []


def test_streams_and_handlers_are_as_before_and_nothing_shown_is_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    handler = logging.StreamHandler(shown)
    logger = logging.getLogger("a library")
    monkeypatch.setattr(logger, "handlers", [handler, logging.lastResort])  # that looks for stderr each time
    with stage_log.heard() as log:
        log.keep_in(tmp_path / "log.txt", "prepare")
        with tqdm(total=1000, mininterval=0, desc="bar") as bar:
            for _ in range(1000):
                bar.update()
        print("half a line", end="", file=sys.stderr)
    assert sys.stderr is shown
    assert handler.stream is shown
    assert shown.getvalue().count("\r") >= 1000
    _, first, last, rest = (tmp_path / "log.txt").read_text().splitlines()
    assert "0/1000" in first
    assert "1000/1000" in last
    assert rest == "half a line"


@pytest.mark.parametrize("unbuffered", ["", "1"])  # with "1", as a flow starts it
def test_a_stage_outlives_its_reader(tmp_path: Path, unbuffered: str) -> None:
    """A training whose flow was killed goes on, until the next run asks it to end: what it prints is still kept."""
    script = """
        import os, sys
        from pathlib import Path
        from stages import stage_log
        from stages.console import progress, run_stage, stage_parser
        def main(_):
            stage_log.current.keep_in(Path("log.txt"), "pretrain")
            for _ in progress(range(3), name="pretrain", unit="step"):
                print("x" * 100_000, flush=True)
            print("saved")
        for stream in (1, 2):
            reading, writing = os.pipe()
            os.dup2(writing, stream)
            os.close(writing), os.close(reading)
        run_stage(main, stage_parser(None))
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert lines[-1] == "saved"
    assert any("| 3.00/3.00 [" in line for line in lines)


def test_secrets_of_the_environment_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "p@ss/word")
    with stage_log.heard() as log:
        log.keep_in(tmp_path / "log.txt", "fetch")
        print("asked with hf_abcdefgh, p@ss/word and p%40ss%2Fword")
    _, line = (tmp_path / "log.txt").read_text().splitlines()
    assert line == "asked with ***, *** and ***"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a file on a disk that is always full")
def test_a_full_disk_costs_the_log_and_not_the_work(capsys: pytest.CaptureFixture[str]) -> None:
    with stage_log.heard() as log:
        log.keep_in(Path("/dev/full"), "prepare")
        print("at work")
    assert capsys.readouterr().out == "at work\n"
