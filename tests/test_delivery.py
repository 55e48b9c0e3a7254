"""What reaches MLflow: everything once, from processes that meet, through a real server that dies and comes back."""

import contextlib
import json
import sqlite3
import threading
from pathlib import Path

import pytest
from mlflow_tools import client, history, python, runs, server
from processes import eventually, free_port

from stages.spool import SPOOLS
from stages.tracking import flush, stage_run
from stages.tracking_store import tracking_uri


def test_processes_that_meet_on_a_fresh_database_all_succeed(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("tracking: {experiment: a study}\n")
    script = """
        import sys
        from stages.tracking import stage_run
        with stage_run(sys.argv[1]) as run:
            for step in range(500):
                run.log_metrics({"loss": float(step), "rate": 1.0}, step=step)
    """
    environment = {"PIPELINE_RUN": "one"}
    processes = [
        threading.Thread(target=python, args=(tmp_path, script, f"stage{n}"), kwargs=environment) for n in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    made = runs(tracking_uri(tmp_path))
    assert set(made) == {"all", "stage0", "stage1", "stage2", "stage3"}
    assert {run.info.status for run in made.values()} == {"FINISHED"}
    made.pop("all")
    for run in made.values():
        assert history(tracking_uri(tmp_path), run.info.run_id, "loss") == [(n, float(n)) for n in range(500)]
    assert not list((tmp_path / SPOOLS).iterdir()), "nothing had to wait: the database was never locked for too long"
    with contextlib.closing(sqlite3.connect(tmp_path / ".pipeline/mlflow.db")) as database:
        assert database.execute("pragma integrity_check").fetchone() == ("ok",)


def test_what_mlflow_refuses_is_said_and_the_rest_arrives(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with stage_run("prepare", params={"a": 1}) as run:
        run.log_params({"a": 2})
        run.log_metrics({"loss": 1.0})
    assert runs(tracking_uri(study))["prepare"].data.metrics == {"loss": 1.0}
    assert "warning: MLflow did not take something of prepare: " in capsys.readouterr().err


def test_a_server_that_dies_in_mid_run_and_comes_back_has_everything_once(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("PIPELINE_RUN", "prefect-1")
    with stage_run("fetch@a") as before:  # nobody there yet
        before.log_metrics({"files": 1.0})
        assert before.run_id is None
    assert capsys.readouterr().err.count("warning: MLflow at") == 1
    with server(study, port) as kill, stage_run("prepare") as run:
        run.log_metrics({"records": 1.0}, step=1)
        eventually(lambda: "records" in client(uri).get_run(run.run_id).data.metrics)
        eventually(lambda: len(list((study / SPOOLS).iterdir())) == 1)  # what the stage before had left is sent
        kill()
        for step in range(2, 1500):
            run.log_metrics({"records": float(step)}, step=step)
        run.log_text("a sample", "sample.txt")
    assert "warning: MLflow at" in capsys.readouterr().err
    assert flush() == 1
    with server(study, port):
        assert flush() == 0
        assert flush() == 0
        made = runs(uri)
        assert history(uri, str(run.run_id), "records") == [(step, float(step)) for step in range(1, 1500)]
        assert [file.path for file in client(uri).list_artifacts(run.run_id)] == ["sample.txt"]
        assert {stage: run.info.status for stage, run in made.items()} == dict.fromkeys(
            ("all", "fetch@a", "prepare"), "FINISHED"
        )
        assert made["fetch@a"].data.metrics == {"files": 1.0}
        note = json.loads((study / ".pipeline/runs/prefect-1/fetch@a.json").read_text())
        assert note["url"].startswith(f"{uri}/#/experiments/")
