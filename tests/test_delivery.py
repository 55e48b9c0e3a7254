"""What reaches MLflow: everything once, from processes that meet, through a real server that dies and comes back."""

import contextlib
import json
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from mlflow_tools import client, history, python, runs, server
from processes import eventually, free_port

from stages.spool import SPOOLS
from stages.tracking import flush, stage_run
from stages.tracking_store import tracking_uri


@contextmanager
def answering(status: Callable[[int], int], port: int = 0) -> Iterator[tuple[int, list[str]]]:
    """A server that answers a bare status, by the size of what it is sent; its port, and the paths it is asked for."""
    asked: list[str] = []

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            size = int(self.headers.get("Content-Length", 0))
            self.rfile.read(size)
            asked.append(self.path)
            self.send_response(status(size))
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_PUT = do_POST

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", port), Answers) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield listening.server_port, asked
        listening.shutdown()


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


def test_of_metrics_sent_together_only_the_wrong_one_is_left_out(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = tracking_uri(study)
    client(uri)  # with MLflow loaded this process sends, and has begun the run before a value is noted
    with stage_run("prepare") as run:
        for step in range(1, 6):
            run.log_metrics({"loss": float(step)}, step=step)
            if step == 3:
                run.log_metrics({"no?name": 1.0}, step=step)
    made = runs(uri)["prepare"]
    assert history(uri, made.info.run_id, "loss") == [(step, float(step)) for step in range(1, 6)]
    assert (made.info.status, list(made.data.metrics)) == ("FINISHED", ["loss"])
    (warning,) = capsys.readouterr().err.splitlines()
    assert "no?name" in warning


def test_a_file_too_large_for_the_way_to_the_server_holds_up_nothing(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = tracking_uri(study)
    with answering(lambda size: 413 if size > 1000 else 200) as (port, asked):
        files = f"http://127.0.0.1:{port}/api/2.0/mlflow-artifacts/artifacts/a"
        client(uri).create_experiment("a study", artifact_location=files)
        with stage_run("prepare") as run:
            run.log_text("x" * 2000, "large.txt")
            run.log_metrics({"loss": 1.0})
            run.log_text("x" * 500, "small.txt")
        assert [path.rpartition("/")[2] for path in asked] == ["large.txt", "small.txt"]
    made = runs(uri)["prepare"]
    assert (made.info.status, made.data.metrics) == ("FINISHED", {"loss": 1.0})
    (warning,) = capsys.readouterr().err.splitlines()
    assert "MLflow did not take something of prepare: 413 Client Error" in warning
    assert not list((study / SPOOLS).iterdir())


def test_what_a_disk_cannot_take_waits_and_holds_up_no_other_run(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nobody answers there
    with stage_run("prepare") as run:
        run.log_text("a sample", "sample.txt")
        run.log_metrics({"loss": 1.0})
    with stage_run("tokenize") as run:
        run.log_metrics({"loss": 2.0})
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    uri, full = tracking_uri(study), study / ".pipeline/mlartifacts"
    full.write_text("not a folder: whoever wants to write below it gets an OSError")
    assert flush() == 1
    assert "cannot take it" in capsys.readouterr().err
    made = runs(uri)
    assert {stage: run.info.status for stage, run in made.items()} == {"prepare": "RUNNING", "tokenize": "FINISHED"}
    full.unlink()
    assert flush() == 0
    run = runs(uri)["prepare"]
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"loss": 1.0})
    assert [file.path for file in client(uri).list_artifacts(run.info.run_id)] == ["sample.txt"]


def test_what_a_server_answers_500_to_reaches_the_next_one_in_order_and_once(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setattr("stages.session.RETRY_AFTER", 0.2)
    monkeypatch.setattr("stages.session.SEND_EVERY", 0.1)
    values = [(step, 1.0 / (1 + step)) for step in range(400)]
    with ExitStack() as servers:
        with stage_run("pretrain") as run:
            with answering(lambda _: 500, port) as (_, asked):
                for step, value in values[:200]:
                    run.log_metrics({"loss": value}, step=step)
                eventually(lambda: len(asked) > 3)
            servers.enter_context(server(study, port))
            for step, value in values[200:]:
                run.log_metrics({"loss": value}, step=step)
        assert flush() == 0  # where the end came within RETRY_AFTER of the last refusal
        made = runs(uri)["pretrain"]
        assert made.info.status == "FINISHED"
        assert history(uri, made.info.run_id, "loss") == values
    warnings = capsys.readouterr().err
    assert warnings.count("cannot take it") == 1
    assert "500 error responses" in warnings


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
