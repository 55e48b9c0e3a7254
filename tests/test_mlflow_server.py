"""A tracking server as a team has one: users with passwords, listed hosts, its artifacts behind it; and one that dies.

Every test runs a real server on 127.0.0.1, with SQLite, and stages as real processes.
"""

import http.client
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import requests
from mlflow_tools import REPOSITORY, client, history, runs, server
from processes import eventually, free_port

from stages.tracking import flush, stage_run

ADMIN, TRAINER = ("admin", "an admin's password"), ("trainer", "correct horse battery")
STAGE = """
    import os, sys
    from stages.console import run_stage, stage_parser
    from stages.tracking import stage_run

    def main(_):
        with stage_run("prepare", params={"url": "https://me:hunter2x@data.example/a?token=hunter2x"}) as run:
            run.log_metrics({"records": 7.0}, step=1)
            run.log_text("a sample", "sample.txt")
            print("the password is", os.environ["MLFLOW_TRACKING_PASSWORD"])
            print("from https://me:hunter2x@data.example/a?token=hunter2x", file=sys.stderr)

    run_stage(main, stage_parser(None))
"""


class Team(NamedTuple):
    """A server that knows two users."""

    uri: str
    root: Path  # its own files


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    root, port = tmp_path_factory.mktemp("server"), free_port()
    (root / ".pipeline").mkdir()
    (root / "auth.ini").write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{root}/auth.db\nadmin_username = {ADMIN[0]}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    environment = {
        "MLFLOW_AUTH_CONFIG_PATH": str(root / "auth.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN[1],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "a key that the server signs its forms with",
    }
    arguments = ("--app-name", "basic-auth", "--allowed-hosts", f"127.0.0.1:{port}")
    with server(root, port, *arguments, **environment):
        uri = f"http://127.0.0.1:{port}"
        new = {"username": TRAINER[0], "password": TRAINER[1]}
        requests.post(f"{uri}/api/2.0/mlflow/users/create", json=new, auth=ADMIN, timeout=60).raise_for_status()
        yield Team(uri, root)


def stage(folder: Path, uri: str, password: str) -> "subprocess.CompletedProcess[str]":
    """Runs STAGE in `folder` as the trainer."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW", "PIPELINE", "DVC"))}
    told = {"MLFLOW_TRACKING_URI": uri, "MLFLOW_TRACKING_USERNAME": TRAINER[0], "MLFLOW_TRACKING_PASSWORD": password}
    command = [sys.executable, "-c", textwrap.dedent(STAGE)]
    environment = kept | told | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", TRAINER[0])
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", TRAINER[1])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(f"tracking: {{experiment: {tmp_path.name}}}\n")
    return tmp_path


def everything_in(folder: Path) -> bytes:
    return b"\n".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_a_stage_logs_with_its_password_which_is_kept_nowhere(team: Team, folder: Path) -> None:
    done = stage(folder, team.uri, TRAINER[1])
    assert (done.returncode, "warning" in done.stderr) == (0, False), done.stderr
    made = runs(team.uri, folder.name)["prepare"]
    assert made.info.status == "FINISHED"
    assert made.data.metrics == {"records": 7.0}
    assert made.data.params == {"url": "https://data.example/a?token=***"}
    log = Path(client(team.uri).download_artifacts(made.info.run_id, "log.txt", str(folder))).read_text()
    assert log.splitlines()[1:3] == ["the password is ***", "from https://data.example/a?token=***"]
    tracked = team.root / "artifacts"
    stored = (team.root / ".pipeline/mlflow.db").read_bytes() + everything_in(tracked) + everything_in(folder)
    assert b"sample.txt" not in stored
    assert b"a sample" in stored
    for secret in (TRAINER[1], ADMIN[1], "hunter2x"):
        assert secret.encode() not in stored
        assert secret not in (team.root / "server.log").read_text()


def test_a_wrong_password_is_one_line_and_nothing_is_lost(team: Team, folder: Path) -> None:
    done = stage(folder, team.uri, "wrong battery")
    assert done.returncode == 0
    warnings = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert "does not know MLFLOW_TRACKING_USERNAME with MLFLOW_TRACKING_PASSWORD; what is logged is kept" in warnings[0]
    assert "wrong battery" not in warnings[0]
    assert b"wrong battery" not in everything_in(folder)
    os.environ["MLFLOW_TRACKING_URI"] = team.uri
    assert flush() == 0
    made = runs(team.uri, folder.name)["prepare"]
    assert (made.info.status, made.data.metrics) == ("FINISHED", {"records": 7.0})
    assert {file.path for file in client(team.uri).list_artifacts(made.info.run_id)} == {"log.txt", "sample.txt"}


def test_a_host_that_is_not_listed_is_refused(team: Team) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", int(team.uri.rpartition(":")[2]), timeout=60)
    found = {}
    for host in (team.uri.removeprefix("http://"), "elsewhere.example"):
        body = json.dumps({"max_results": 1})
        headers = {"Host": host, "Content-Type": "application/json"}
        connection.request("POST", "/api/2.0/mlflow/experiments/search", body, headers)
        answer = connection.getresponse()
        answer.read()
        found[host] = answer.status
    assert list(found.values()) == [401, 403]


def test_a_server_killed_in_mid_run_and_started_again_has_every_value_once(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setattr("stages.session.RETRY_AFTER", 1.0)
    with server(study, port) as kill, stage_run("pretrain", params={"a": 1}) as run:
        for step in range(3000):  # the server dies while it takes them
            run.log_metrics({"loss": 1.0 / (1 + step), "rate": float(step)}, step=step)
            if step == 1000:
                eventually(lambda: "loss" in client(uri).get_run(run.run_id).data.metrics)
                kill()
        eventually(lambda: "does not answer" in capsys.readouterr().err)
        with server(study, port):
            for step in range(3000, 4000):
                run.log_metrics({"loss": 1.0 / (1 + step), "rate": float(step)}, step=step)
            run.log_text("a sample", "sample.txt")
            eventually(lambda: client(uri).list_artifacts(run.run_id))
            assert history(uri, str(run.run_id), "rate") == [(step, float(step)) for step in range(4000)]
            assert history(uri, str(run.run_id), "loss") == [(step, 1.0 / (1 + step)) for step in range(4000)]
