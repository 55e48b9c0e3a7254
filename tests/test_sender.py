"""The process that sends to MLflow for all stages: real processes and a real SQLite store."""

import contextlib
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
from mlflow_tools import REPOSITORY, history, runs

from stages import sender
from stages.session import LAST_SEND
from stages.spool import SPOOLS, Journal, Spool
from stages.tracking_store import tracking_uri

SENDERS = Path(".pipeline/senders")
STAGE = """
    import os, sys
    from stages.tracking import stage_run
    with stage_run(sys.argv[1]) as run:
        run.log_metrics({"loss": 3.0}, step=1)
        print(run.run_id, flush=True)
        if len(sys.argv) > 2:
            input()
            run.log_metrics({"loss": 2.0}, step=2)
        assert "mlflow" not in sys.modules
"""


@pytest.fixture(autouse=True)
def _none_is_left(study: Path) -> Iterator[None]:
    yield
    for process in senders(study):
        process.kill()


def senders(folder: Path) -> list[psutil.Process]:
    """Those at work in a folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(folder / ".pipeline") and "stages.sender" in process.cmdline():
                found.append(process)
        except psutil.Error:
            continue
    return found


def stage(folder: Path, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
    """A stage's process; with a second argument it goes on when it is told to."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW", "PIPELINE"))}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(STAGE), *arguments], cwd=folder, text=True, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=kept | {"PYTHONPATH": str(REPOSITORY)} | environment,
    )  # fmt: skip


def ended(process: "subprocess.Popen[str]") -> str:
    """What it printed on stderr."""
    _, errors = process.communicate("\n", timeout=300)
    assert process.returncode == 0, errors
    return errors


def stages_in(database: Path) -> set[str]:
    """Read without MLflow, which in this process would go on with a database that was deleted."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return {row[0] for row in connection.execute("select value from tags where key = 'pipeline.stage'")}


def test_stages_that_load_no_mlflow_share_a_process_that_is_no_child_of_theirs(study: Path) -> None:
    waiting = stage(study, "prepare", "wait", PIPELINE_RUN="one", OMP_NUM_THREADS="1")
    assert waiting.stdout is not None
    assert waiting.stdout.readline() != "None\n"
    assert not psutil.Process(waiting.pid).children(), "who ends a stage with all it started does not end it"
    assert not ended(stage(study, "tokenize", PIPELINE_RUN="one", OMP_NUM_THREADS="2"))
    (only,) = senders(study)
    assert not ended(waiting)
    uri = tracking_uri(study)
    made = runs(uri)
    assert {name: run.info.status for name, run in made.items()} == dict.fromkeys(
        ("all", "prepare", "tokenize"), "FINISHED"
    )
    assert history(uri, made["prepare"].info.run_id, "loss") == [(1, 3.0), (2, 2.0)]
    assert only.is_running()
    assert only.environ().keys().isdisjoint({"PIPELINE_RUN", "OMP_NUM_THREADS"})
    assert not (study / SENDERS / only.cmdline()[-1]).stat().st_mode & 0o077, "others can ask it for nothing"


def test_one_that_is_killed_is_followed_by_another_and_everything_arrives_once(study: Path) -> None:
    process = stage(study, "prepare", "wait")
    assert process.stdout is not None
    process.stdout.readline()
    (first,) = senders(study)
    address = study / SENDERS / first.cmdline()[-1]
    address.unlink()
    dying = sender._listener(address)  # what a killed process has is closed one by one, and this last
    first.kill()
    printed = address.with_suffix(sender.PRINTED)
    printed.write_text("the first one's\n")
    assert dying is not None
    assert process.stdin is not None
    dying.settimeout(60)
    process.stdin.write("\n")
    process.stdin.flush()
    with dying.accept()[0]:
        dying.close()
    assert not ended(process)
    (second,) = senders(study)
    assert second.pid != first.pid
    assert "the first one's" not in printed.read_text()
    run = runs(tracking_uri(study))["prepare"]
    assert (run.info.status, history(tracking_uri(study), run.info.run_id, "loss")) == (
        "FINISHED",
        [(1, 3.0), (2, 2.0)],
    )
    assert not list((study / SPOOLS).iterdir())


def test_a_stage_that_is_killed_is_marked_by_the_next(study: Path) -> None:
    process = stage(study, "prepare", "wait")
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    ended(stage(study, "tokenize"))
    made = runs(tracking_uri(study))
    assert {name: run.info.status for name, run in made.items()} == {"prepare": "KILLED", "tokenize": "FINISHED"}
    assert history(tracking_uri(study), made["prepare"].info.run_id, "loss") == [(1, 3.0)]


def test_other_stores_and_deleted_ones_are_told_apart(study: Path) -> None:
    store, other = study / ".pipeline/mlflow.db", study / "other.db"
    ended(stage(study, "prepare"))
    assert stages_in(store) == {"prepare"}
    store.unlink()
    ended(stage(study, "tokenize"))
    assert stages_in(store) == {"tokenize"}
    ended(stage(study, "leakage", MLFLOW_TRACKING_URI=f"sqlite:///{other}"))
    assert stages_in(other) == {"leakage"}
    shutil.rmtree(study / ".pipeline")
    ended(stage(study, "report"))
    assert stages_in(store) == {"report"}


def test_what_it_says_of_the_server_is_said_by_the_stage(study: Path) -> None:
    errors = ended(stage(study, "prepare", MLFLOW_TRACKING_URI="nonsense://x"))
    assert errors.startswith("warning: MLflow at nonsense://x cannot take it (Model ")
    assert len(errors.splitlines()) == 1
    assert len(list((study / SPOOLS).iterdir())) == 1
    twice = STAGE.replace("print(", "run.log_params({'a': 1}); run.log_params({'a': 2}); print(")
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", textwrap.dedent(twice), "prepare"]
    done = subprocess.run(command, cwd=study, env=environment, capture_output=True, text=True, check=True)
    assert "warning: MLflow did not take something of prepare: " in done.stderr


def test_why_mlflow_itself_does_not_work_is_said_by_the_stage(study: Path) -> None:
    (study / "broken/mlflow").mkdir(parents=True)
    (study / "broken/mlflow/__init__.py").write_text("raise ImportError('it is half installed')")
    path = os.pathsep.join((str(study / "broken"), str(REPOSITORY)))
    (line,) = ended(stage(study, "prepare", PYTHONPATH=path)).splitlines()
    assert line.startswith("warning: MLflow at sqlite:")
    assert "it is half installed" in line
    assert not ended(stage(study, "tokenize"))
    assert runs(tracking_uri(study)).keys() == {"prepare", "tokenize"}


def test_where_there_are_no_sockets_a_stage_sends_by_itself(study: Path) -> None:
    (study / SENDERS).write_text("not a folder")
    process = stage(study, "prepare")
    _, errors = process.communicate(timeout=300)
    assert errors.strip().endswith("AssertionError"), "it loaded MLflow"
    assert runs(tracking_uri(study))["prepare"].info.status == "FAILED"


def test_a_server_that_hangs_slows_no_stage_and_bounds_its_end(study: Path) -> None:
    script = """
        import time
        from stages.tracking import stage_run
        with stage_run("prepare") as run:
            begun = time.monotonic()
            while time.monotonic() < begun + 1.0:
                run.log_metrics({"at": time.monotonic()})
            print(begun, time.monotonic(), flush=True)
        print(time.monotonic())
    """
    with socket.create_server(("127.0.0.1", 0)) as hangs:  # connections are made, and nobody reads from them
        environment = os.environ | {
            "PYTHONPATH": str(REPOSITORY),
            "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{hangs.getsockname()[1]}",
        }
        for patience in ("MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"):
            environment.pop(patience, None)  # which a test that registers models, in this process, has set to minutes
        command = [sys.executable, "-c", textwrap.dedent(script)]
        done = subprocess.run(command, cwd=study, env=environment, capture_output=True, text=True, check=True)
    begun, worked, ended = map(float, done.stdout.split())
    (spool,) = (study / SPOOLS).iterdir()
    noted = [operation["values"]["at"] for operation, _ in Journal(spool).operations() if operation["op"] == "metrics"]
    pauses = [after - before for before, after in pairwise([begun, *noted, worked])]
    assert max(pauses) < 2.0, "a request takes 4 s to be given up"
    assert ended - worked < LAST_SEND
    (warning,) = done.stderr.splitlines()
    assert "does not answer; what is logged is kept and sent later" in warning


def test_one_that_hangs_is_waited_for_a_while_and_no_longer(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "ANSWER_SECONDS", 0.5, raising=False)
    address, _ = sender._address(tracking_uri(study), study)
    address.parent.mkdir()
    hangs = sender._listener(address)
    assert hangs is not None
    spool = Spool.create(study)
    spool.append({"op": "end"})
    asking = sender.Sender(tracking_uri(study), study)
    answers: list[bool] = []
    waiting = threading.Thread(target=lambda: answers.append(asking.send(spool)), daemon=True)
    waiting.start()
    waiting.join(30)
    hangs.close()
    assert answers == [False]
    assert asking.trouble == "cannot be told: the process that sends to it has not answered for 0 s"
    assert spool.unsent()


def test_it_ends_when_there_are_no_stages_for_a_while(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "IDLE", 0.5)
    address = study / SENDERS / "one"
    address.parent.mkdir()
    listener = sender._listener(address)
    assert listener is not None
    assert sender._listener(address) is None, "another one listens there"
    serving = threading.Thread(target=sender._serve, args=(listener, address, tracking_uri(study)), daemon=True)
    serving.start()
    stream = sender._connection(address)
    assert stream is not None
    for _ in range(2):
        stream.write(b"null\n")
        assert b"system/" in stream.readline()
        serving.join(1.5)
        assert serving.is_alive(), "a stage is still there"
    stream.close()
    serving.join(60)
    assert not serving.is_alive()
    assert not address.exists()
