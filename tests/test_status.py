"""`make status` beside real runs: at work, ended, failed, killed; asked while they run, and after."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

from processes import eventually
from toy_project import ROOT, make_project, run_flows, set_mode, start_flows

from flows.events import Listener
from flows.graph import Plan, Stage
from flows.progress import Progress
from flows.run_stage import Outcome, Result
from flows.status import EVERY_SECONDS, StatusWriter, status_text
from flows.workspace import workspace


def status(folder: Path) -> tuple[int, str]:
    """The exit status and output of the command, which asks no server."""
    kept = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    done = subprocess.run(
        [sys.executable, "-m", "flows.status"],
        cwd=folder,
        env=kept | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout + done.stderr


def test_a_run_is_seen_at_work_and_killed_and_failed_and_ended(api: str, tmp_path: Path) -> None:
    project = make_project(tmp_path)
    plan = (project / "dvc.yaml").read_text()
    (project / "dvc.yaml").write_text(plan.replace("retries: 1", "retries: 0"))  # each would wait for 10 s
    assert status(project) == (0, "no run yet: make demo, or make serve-flows\n")

    set_mode(project, "checkpoints")  # runs until it is stopped
    process = start_flows(project, PREFECT_API_URL=api)
    eventually(lambda: (project / "pids").exists() or process.poll() is not None)
    assert process.poll() is None
    code, text = status(project)
    assert code == 0
    assert text.startswith("running since ")
    assert f"  {'prepare':<28} ran" in text
    assert f"  {'finetune@translation':<28} running" in text
    assert "still to come: " in text.splitlines()[-1]
    assert "report" in text.splitlines()[-1]

    process.send_signal(signal.SIGINT)
    process.communicate(timeout=300)
    assert "nothing is running; the last run began " in status(project)[1]
    assert f"  {'finetune@translation':<28} stopped" in status(project)[1]

    set_mode(project, "crash")
    run_flows(project, "--targets", "finetune@translation", PREFECT_API_URL=api)
    text = status(project)[1]
    assert "last failure: finetune@translation, " in text
    assert "  | ValueError: no such luck" in text
    set_mode(project, "")
    run_flows(project, PREFECT_API_URL=api)
    text = status(project)[1]
    assert "last failure: finetune@translation, " in text, "it is remembered until there is another"
    assert f"  {'report':<28} ran" in text

    file = project / ".pipeline" / "status.json"
    facts = json.loads(file.read_text())
    file.write_text(json.dumps(facts | {"ended": None}))  # as a run leaves it that is killed
    assert " was killed" in status(project)[1].splitlines()[0]


def test_how_long_it_takes_yet_is_known_from_the_last_time(tmp_path: Path) -> None:
    stages = {
        name: Stage(name, "", upstream, retries=0, timeout_seconds=None, devices=None)
        for name, upstream in {"prepare": (), "pretrain": ("prepare",), "report": ("pretrain",), "new": ()}.items()
    }
    with workspace(tmp_path):  # which is how a run is known to be at work
        first = StatusWriter(tmp_path, Listener(), "")
        first.planned(Plan(stages, frozenset(stages)))
        for name, seconds in (("prepare", 100.0), ("pretrain", 1000.0), ("report", 60.0)):
            first.started(name)
            assert " to go" not in status_text(tmp_path, time.time()), "nothing is known of what is to come"
            first.ended(name, Result(Outcome.RAN, seconds))
        first.close()

        second = StatusWriter(tmp_path, Listener(), "")
        second.planned(Plan(stages, frozenset({"pretrain", "new"})))
        second.ended("prepare", Result(Outcome.UNCHANGED, 0.0))
        second.started("pretrain")
        began = time.time()
        text = status_text(tmp_path, began + 400)
        assert "about 11 min 00 s to go, as it took the last time, and what new will take" in text
        late = status_text(tmp_path, began + 4000)
        assert "about 1 min 00 s to go, as it took the last time, and what pretrain, new will take" in late
        time.sleep(EVERY_SECONDS)  # what came sooner after the last is not written
        second.progress("pretrain", Progress("pretrain", 0.1, "10/100, 06:40<1:00:00, 4.0s/step"))  # slower than then
        assert "about 1 h 01 min to go" in status_text(tmp_path, began + 400)
    assert " to go" not in status_text(tmp_path, began + 400), "the run is dead"


def test_a_stage_without_a_flow_is_seen(study: Path) -> None:
    script = """
        import sys, time
        from stages.console import progress, run_stage, stage_parser
        from stages.tracking import stage_run
        def main(_):
            with stage_run("pretrain"):
                with progress(total=10, name="pretrain", unit="step") as bar:
                    bar.mininterval = 0
                    bar.update(4)
                    time.sleep(600)
        run_stage(main, stage_parser(None))
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW", "PIPELINE"))}
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=study, env=environment | {"PYTHONPATH": str(ROOT)}
    )
    try:
        eventually(lambda: process.poll() is not None or "pretrain is running outside a flow, for" in status(study)[1])
        eventually(lambda: process.poll() is not None or "%, " in status(study)[1])
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
    assert status(study) == (0, "no run yet: make demo, or make serve-flows\n")


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / ".pipeline").mkdir()
    (tmp_path / ".pipeline" / "status.json").write_text("{")
    code, text = status(tmp_path)
    assert code == 1
    assert text.startswith("error: ")
    assert "status.json cannot be read" in text
    assert text.count("\n") == 1
