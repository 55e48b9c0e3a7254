import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from processes import eventually, still_works
from toy_project import make_project, set_mode

from flows import run_stage
from flows.graph import read_plan
from flows.run_stage import Outcome, Result, StageRunner, child_environment

TRANSLATION = "finetune@translation"


def project(folder: Path, mode: str = "") -> StageRunner:
    """A project whose `prepare` has run, and a runner for it."""
    read_plan(make_project(folder, mode))  # sets DVC up
    runner = StageRunner(folder, {})
    assert runner.run("prepare", lambda line: None).outcome is Outcome.RAN
    return runner


def run_and_stop(folder: Path, runner: StageRunner) -> Result:
    """Runs the translation stage in a thread and stops it once it is at work."""
    results: list[Result] = []
    thread = threading.Thread(target=lambda: results.append(runner.run(TRANSLATION, lambda line: None)))
    thread.start()
    eventually((folder / "pids").exists)
    runner.stop()
    thread.join(timeout=60)
    return results[0]


def alive(folder: Path) -> list[int]:
    """Of the stage's process and its grandchild, those that still run."""
    pids = [int(pid) for pid in (folder / "pids").read_text().split()]
    return [pid for pid in pids if still_works(pid)]


def test_ran_unchanged_and_restored(tmp_path: Path) -> None:
    runner = project(tmp_path)
    assert runner.run("prepare", lambda line: None).outcome is Outcome.UNCHANGED
    (tmp_path / "out" / "prepare").unlink()
    restored = runner.run("prepare", lambda line: None)
    assert restored.outcome is Outcome.UNCHANGED
    assert "cache" in restored.message
    assert (tmp_path / "out" / "prepare").exists()


def test_output_comes_line_by_line(tmp_path: Path) -> None:
    lines: list[str] = []
    project(tmp_path).run(TRANSLATION, lines.append)
    assert "hello from translation" in lines
    bars = [line for line in lines if line.startswith("translation:")]
    assert any("100%" in bar for bar in bars)
    assert all(bar.count("%") == 1 for bar in bars)


def test_bytes_that_are_no_text_do_not_end_the_reading() -> None:
    lines: list[str] = []
    log = run_stage.StageLog("prepare", lines.append)
    for chunk in (b"caf\xc3", b"\xa9\r10% \x1b[A\r", b"\xff\xfe\n", b"last"):
        log.feed(chunk)
    log.close()
    assert lines == ["café", "10%", "��", "last"]


def test_secrets_go_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither to Prefect's log, nor with the message and the last lines to status.json and the webhook."""
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh")
    lines: list[str] = []
    log = run_stage.StageLog("fetch", lines.append)
    log.feed(b"Running stage 'fetch':\nasked with hf_abcdefgh\n")
    log.feed(b"error: https://me:word@a.example does not know hf_abcdefgh\n")
    log.feed(b"ERROR: failed to reproduce 'fetch': failed to run: python -m stages.fetch, exited with 1\n")
    result = log.result(1, asked_to_stop=False)
    assert result.message == "https://a.example does not know ***"
    for text in (*lines, *result.tail):
        assert "hf_abcdefgh" not in text


def test_wrong_input_is_not_tried_again(tmp_path: Path) -> None:
    result = project(tmp_path, "wrong input").run(TRANSLATION, lambda line: None)
    assert result.outcome is Outcome.FAILED
    assert result.message == "params.yaml, line 3: tasks.translation.steps is wrong"
    assert not result.may_retry


@pytest.mark.parametrize("shell", ["/bin/bash", "/bin/sh"])  # one becomes its only command, one may wait for it
@pytest.mark.parametrize(
    ("mode", "message"), [("crash", "ValueError: no such luck"), ("killed", "ended by signal SIGKILL")]
)
def test_a_crash_may_be_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, message: str, shell: str
) -> None:
    monkeypatch.setenv("SHELL", shell)
    result = project(tmp_path, mode).run(TRANSLATION, lambda line: None)
    assert (result.outcome, result.message, result.may_retry) == (Outcome.FAILED, message, True)
    assert "hello from translation" in result.tail


def test_what_dvc_refuses_is_not_tried_again(tmp_path: Path) -> None:
    runner = project(tmp_path)
    (tmp_path / "mode").unlink()
    result = runner.run(TRANSLATION, lambda line: None)
    assert result.outcome is Outcome.FAILED
    assert "mode" in result.message
    assert not result.may_retry


def test_what_another_has_asked_to_end_is_tried_again_and_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    """As a machine that is taken back does: the stage alone gets SIGTERM, saves its work and says so by its status."""
    runner = project(tmp_path, "hangs once")
    lines: list[str] = []

    def hear(line: str) -> None:
        lines.append(line)
        if line == "at work":
            os.kill(int((tmp_path / "pids").read_text().split()[0]), signal.SIGTERM)

    result = runner.run(TRANSLATION, hear)
    assert (result.outcome, result.message) == (Outcome.FAILED, "ended by signal SIGTERM")
    assert result.may_retry
    assert alive(tmp_path) == []
    assert runner.run(TRANSLATION, lines.append).outcome is Outcome.RAN
    assert "goes on from saved" in lines


def test_a_stopped_stage_saves_its_work_and_goes_on_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_stage, "STOP_GRACE_SECONDS", 3.0)
    result = run_and_stop(tmp_path, project(tmp_path, "checkpoints"))
    assert result.outcome is Outcome.STOPPED
    assert (tmp_path / "checkpoint").read_text() == "saved"
    assert alive(tmp_path) == []
    set_mode(tmp_path, "")
    assert StageRunner(tmp_path, {}).run(TRANSLATION, lambda line: None).outcome is Outcome.RAN


def test_what_ignores_sigterm_is_killed_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_stage, "STOP_GRACE_SECONDS", 1.0)
    result = run_and_stop(tmp_path, project(tmp_path, "stubborn"))
    assert result.outcome is Outcome.STOPPED
    assert alive(tmp_path) == []


def test_nothing_starts_after_a_stop(tmp_path: Path) -> None:
    runner = project(tmp_path)
    runner.stop()
    assert runner.run(TRANSLATION, lambda line: None).outcome is Outcome.STOPPED
    assert not (tmp_path / "out" / "translation").exists()


def test_timeout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_stage, "STOP_GRACE_SECONDS", 1.0)
    began = time.monotonic()
    runner = project(tmp_path, "stubborn")
    enough = max(4.0, 2 * (time.monotonic() - began))  # to begin: DVC and one stage have just taken half of that
    result = runner.run(TRANSLATION, lambda line: None, timeout_seconds=enough)
    assert result.outcome is Outcome.FAILED
    assert "timeout_minutes" in result.message
    assert result.may_retry
    assert alive(tmp_path) == []


def test_python_in_a_stage_is_this_python() -> None:
    assert Path(child_environment({})["PATH"].split(":")[0]) / "python" == Path(sys.prefix) / "bin" / "python"
