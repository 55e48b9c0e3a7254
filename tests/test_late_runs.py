"""Runs that nobody begins, as a real Prefect server knows them, and how soon a server that is silent is given up."""

import socket
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import requests
from prefect_api import post

from flows.late_runs import late_runs
from flows.status import status_text
from lightning_modules.errors import PipelineError


def test_runs_that_no_worker_takes_are_named_with_what_to_do(api: str, tmp_path: Path) -> None:
    assert late_runs(api) == []
    flow = post(f"{api}/flows/", {"name": "pipeline"})["id"]
    post(f"{api}/work_pools/", {"name": "work station", "type": "process"})
    pools = {"nightly": "work station", "served": None}
    for name, pool in pools.items():
        body = {"name": name, "flow_id": flow, "entrypoint": "flows/pipeline.py:pipeline", "work_pool_name": pool}
        deployment = post(f"{api}/deployments/", body)["id"]
        runs = []
        for minutes in (-60, -50, -30, 60):  # the last is not due yet
            due = (datetime.now(UTC) + timedelta(minutes=minutes)).isoformat()
            state = {"type": "SCHEDULED", "state_details": {"scheduled_time": due}}
            runs.append(post(f"{api}/deployments/{deployment}/create_flow_run", {"state": state})["id"])
        if pool is not None:
            stuck, retried = runs[:2]
    post(f"{api}/flow_runs/{stuck}/set_state", {"state": {"type": "PENDING"}})  # by a worker that has died
    later = {"scheduled_time": (datetime.now(UTC) + timedelta(minutes=60)).isoformat()}
    again = {"type": "SCHEDULED", "name": "AwaitingRetry", "state_details": later}
    post(f"{api}/flow_runs/{retried}/set_state", {"state": again, "force": True})
    waits, serves = sorted(late_runs(api), key=lambda line: "serves" in line)
    assert waits.startswith("2 flow runs wait since ")
    assert waits.endswith(", as no worker polls work pool work station: prefect worker start --pool 'work station'")
    assert serves.endswith(" for the process that serves them: make serve-flows")
    assert status_text(tmp_path, time.time()).splitlines()[1:] == late_runs(api), "PREFECT_API_URL names the server"

    heartbeat = f"{api}/work_pools/work%20station/workers/heartbeat"
    requests.post(heartbeat, json={"name": "a worker"}, timeout=60).raise_for_status()
    assert any("which a worker polls: it may be paused" in line for line in late_runs(api))


def test_a_server_that_is_away_or_silent_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    assert "the Prefect server of PREFECT_API_URL does not answer" in status_text(tmp_path, time.time())
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(PipelineError, match="does not answer"):
            late_runs(f"http://127.0.0.1:{silent.getsockname()[1]}/api")
    with pytest.raises(PipelineError, match="is not a web address"):
        late_runs("file:///etc/passwd")
