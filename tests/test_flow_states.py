"""What becomes of runs in rare cases, against a real Prefect server; the flows run in this process."""

import threading
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from prefect import flow, get_client, runtime
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Failed
from prefect_api import log_of, post
from processes import eventually, still_works
from rich.console import Console
from toy_project import make_project

from flows import pipeline, sweep_flow, watch
from flows.__main__ import _run_flow
from flows.notify import tell_webhook
from flows.outside import is_locked
from flows.workspace import STATE, workspace
from lightning_modules.errors import Interrupted, PipelineError

DRIFT = """
import json, os, pathlib, time
print("asked with", os.environ["HF_TOKEN"], flush=True)
pathlib.Path("pid").write_text(str(os.getpid()))
time.sleep(30)
"""


@pytest.fixture
def project(api: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project as the working directory, of flows that are called in this process."""
    monkeypatch.chdir(make_project(tmp_path))
    monkeypatch.setattr(pipeline, "workspace", partial(workspace, wait_seconds=0.5))
    monkeypatch.setenv("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")  # which `_run_flow` sets
    with temporary_settings({PREFECT_API_URL: api}):  # Prefect may have read its settings before there was a server
        yield tmp_path
        pipeline.flush()  # or this process would try to when the server is no more


def test_a_run_that_is_skipped_is_an_error_and_no_stop(project: Path) -> None:
    with workspace(project), pytest.raises(PipelineError, match="holds this workspace"):
        _run_flow(project, ["prepare"], {}, Console())


def test_the_artifacts_are_made_while_the_workspace_is_held(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[bool] = []
    monkeypatch.setattr(pipeline, "publish", lambda root, *_: held.append(is_locked(root / STATE / "run")))
    assert pipeline.pipeline(targets=["prepare"], return_state=True).is_completed()
    assert held == [True]


def test_a_run_that_the_server_has_deleted_is_not_cancelled(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", str(uuid.uuid4()))
    with get_client(sync_client=True) as client:
        assert not pipeline.cancelled(client)
    assert not sweep_flow._cancelled()


def test_a_run_within_another_leaves_the_webhook_to_that(
    webhook: tuple[str, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, told = webhook
    monkeypatch.setenv("PIPELINE_WEBHOOK", address)
    for name, parent in (("part", uuid.uuid4()), ("whole", None)):
        run = FlowRun(flow_id=uuid.uuid4(), name=name, parent_task_run_id=parent)
        tell_webhook(pipeline.pipeline, run, Failed(message="no such luck"))
    assert [message["flow_run"] for message in told] == ["whole"]


def test_cancelling_the_watch_ends_what_it_measures_and_its_log_has_no_secrets(
    api: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a worker that passes it on; a stand-in for stages.drift, which would be done too soon."""
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh")
    (project / "stages").mkdir()
    (project / "stages/__init__.py").touch()
    (project / "stages/drift.py").write_text(DRIFT)
    ended: list[str] = []

    def cancel(run: str) -> None:
        eventually(lambda: (project / "pid").exists() and (project / "pid").read_text())
        post(f"{api}/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})

    @flow
    def measuring() -> None:
        ended.append(str(runtime.flow_run.id))
        threading.Thread(target=cancel, args=ended[:1]).start()
        try:
            watch._drift(project, {})
        except Interrupted as stop:
            ended.append(str(stop))

    measuring(return_state=True)
    assert ended[1:] == ["cancelled"]
    assert not still_works(int((project / "pid").read_text()))
    eventually(lambda: "asked with ***" in log_of(api, flow_run_id=ended[0]))
