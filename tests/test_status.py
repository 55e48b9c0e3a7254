"""`make status` beside real runs: at work, ended, failed, killed; asked while they run, and after."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from toy_project import ROOT, make_project, run_flows, set_mode, start_flows


def status(folder: Path) -> tuple[int, str]:
    """The exit status and output of the command."""
    done = subprocess.run(
        [sys.executable, "-m", "flows.status"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout + done.stderr


def test_a_run_is_seen_at_work_and_killed_and_failed_and_ended(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    assert status(project) == (0, "no run yet: make demo, or make serve-flows\n")

    set_mode(project, "checkpoints")  # runs until it is stopped
    process = start_flows(project)
    deadline = time.monotonic() + 120
    while not (project / "pids").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.2)
    code, text = status(project)
    assert code == 0
    assert text.startswith("running since ")
    assert f"  {'prepare':<28} ran" in text
    assert f"  {'finetune@translation':<28} running" in text
    assert "still to come: " in text.splitlines()[-1]
    assert "report" in text.splitlines()[-1]

    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert "nothing is running; the last run began " in status(project)[1]
    assert f"  {'finetune@translation':<28} stopped" in status(project)[1]

    set_mode(project, "crash")
    run_flows(project, "--targets", "finetune@translation")
    text = status(project)[1]
    assert "last failure: finetune@translation, " in text
    assert "  | ValueError: no such luck" in text
    set_mode(project, "")
    run_flows(project)
    text = status(project)[1]
    assert "last failure: finetune@translation, " in text, "it is remembered until there is another"
    assert f"  {'report':<28} ran" in text

    file = project / ".pipeline" / "status.json"
    facts = json.loads(file.read_text())
    file.write_text(json.dumps(facts | {"ended": None}))  # as a run leaves it that is killed
    assert " was killed" in status(project)[1].splitlines()[0]


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / ".pipeline").mkdir()
    (tmp_path / ".pipeline" / "status.json").write_text("{")
    code, text = status(tmp_path)
    assert code == 1
    assert text.startswith("error: ")
    assert "status.json cannot be read" in text
    assert text.count("\n") == 1
