"""The flow against one real Prefect server, started once: states, logs, artifacts, cancelling, a schedule that fires.

The last guards the pins of fastapi and sqlalchemy: with wrong ones the server does not start, or fires no schedule.
"""

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from prefect_api import log_of, post, read_run, states, task_runs
from processes import eventually, still_works
from toy_project import ROOT, make_project, run_flows, set_mode, start_flows, write_metrics

from flows.events import Listener, listener
from flows.workspace import workspace

TRANSLATION = "finetune@translation"
OTHERS = ("finetune@question_answering", "finetune@summarization")
SCHEDULED = """
deployments:
  - name: scheduled
    entrypoint: {entrypoint}
    parameters: {{targets: [prepare], overrides: {{prepare.min_characters: 4}}}}
    schedules: [{{interval: 10}}]
    concurrency_limit: {{limit: 1, collision_strategy: CANCEL_NEW}}
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_project(tmp_path_factory.mktemp("project"))
    write_metrics(folder)
    return folder


def last_run(api: str) -> dict[str, Any]:
    return dict(post(f"{api}/flow_runs/filter", {"sort": "EXPECTED_START_TIME_DESC", "limit": 1})[0])


def test_every_stage_is_a_task_with_its_log(api: str, project: Path) -> None:
    status, output = run_flows(project, PREFECT_API_URL=api)
    assert status == 0, output
    run = last_run(api)
    assert (run["state_type"], run["state_name"]) == ("COMPLETED", "Ran")
    tasks = task_runs(api, run)
    assert {name: task["state_name"] for name, task in tasks.items()} == dict.fromkeys(
        ("prepare", TRANSLATION, *OTHERS, "report"), "Ran"
    )
    names = {task["id"]: name for name, task in tasks.items()}
    edges = {names[source["id"]] for source in tasks["report"]["task_inputs"]["wait_for"]}
    assert edges == {"finetune@summarization", TRANSLATION}
    log = log_of(api, task_run_id=tasks[TRANSLATION]["id"])
    assert "hello from translation" in log
    assert any(line.startswith("translation: 100%|") for line in log)


def test_artifacts(api: str, project: Path) -> None:
    run = last_run(api)
    found = post(f"{api}/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run["id"]]}}})
    artifacts = {artifact["key"]: artifact["data"] for artifact in found}
    stages = {row["stage"]: row for row in json.loads(artifacts["stages"])}
    assert stages[TRANSLATION]["what happened"] == "ran"
    assert stages[TRANSLATION]["seconds"] > 0
    assert json.loads(artifacts["metrics"])[0]["pre-trained"] == "12.3 [11.0, 13.5]"
    assert "| finetune@translation | [http://127.0.0.1:5000/#/translation]" in artifacts["mlflow-runs"]


def test_failures_are_told_apart_and_retried_only_where_it_helps(
    api: str, project: Path, webhook: tuple[str, list[dict[str, Any]]]
) -> None:
    address, told = webhook
    set_mode(project, "wrong input")  # all fine-tunings depend on it, only the translation minds
    status, output = run_flows(project, PREFECT_API_URL=api, PIPELINE_WEBHOOK=address)
    assert status == 1
    (message,) = told
    assert message["state"] == "Failed"
    assert f"{TRANSLATION}: params.yaml, line 3: tasks.translation.steps is wrong" in message["text"]
    assert last_run(api)["id"] in message["url"]
    assert last_run(api)["name"] == message["flow_run"]
    assert output.splitlines()[-1] == f"error: {TRANSLATION}: params.yaml, line 3: tasks.translation.steps is wrong"
    run = last_run(api)
    assert run["state_type"] == "FAILED"
    tasks = task_runs(api, run)
    assert {name: task["state_name"] for name, task in tasks.items()} == {
        "prepare": "Unchanged",
        TRANSLATION: "Failed",
        **dict.fromkeys(OTHERS, "Ran"),
        "report": "NotRun",
    }
    assert tasks["report"]["state"]["message"] == f"not run: {TRANSLATION} has failed"
    assert tasks[TRANSLATION]["run_count"] == 1

    set_mode(project, "crash")
    _, output = run_flows(project, "--targets", TRANSLATION, PREFECT_API_URL=api, PIPELINE_WEBHOOK=address)
    assert len(told) == 2
    run = last_run(api)
    log = log_of(api, flow_run_id=run["id"])
    assert any(line.endswith("could not be told: status 503") for line in log)
    assert not any("secret" in line for line in log)  # the address may open a channel to whoever has it
    tasks = task_runs(api, run)
    assert set(tasks) == {"prepare", TRANSLATION}
    assert tasks[TRANSLATION]["state_name"] == "Failed"
    assert tasks[TRANSLATION]["run_count"] == 2


def test_cancelling_in_the_ui_ends_the_training(api: str, project: Path) -> None:
    """And the stage may save its work, also when SIGTERM follows, as a worker sends it that has heard of the same."""
    set_mode(project, "saves slowly")
    process = start_flows(project, PREFECT_API_URL=api)
    eventually((project / "pids").exists)
    pids = [int(pid) for pid in (project / "pids").read_text().split()]
    run = last_run(api)
    post(f"{api}/flow_runs/{run['id']}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
    eventually((project / "checkpoint").exists)
    process.send_signal(signal.SIGTERM)
    time.sleep(1.0)  # time to end the stage, for a flow that would
    (project / "go").touch()
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM, output
    assert (project / "checkpoint").read_text() == "saved"
    assert not any(still_works(pid) for pid in pids)
    assert last_run(api)["state_type"] == "CANCELLED"
    ended = states(api, run)
    assert ended[TRANSLATION] == "Stopped"
    assert ended["report"] == "NotRun"


OUTER = """
from prefect import flow
from flows.pipeline import pipeline
@flow(name="outer")
def outer():
    return pipeline(targets=["finetune@translation"], return_state=True)
outer(return_state=True)
"""


def test_cancelling_the_flow_that_a_pipeline_is_a_part_of_ends_the_training(api: str, tmp_path: Path) -> None:
    """Also where no worker passes it on: `watch` is such a flow."""
    project = make_project(tmp_path, "checkpoints")
    (project / "outer.py").write_text(OUTER)
    process = start_flows(project, module="outer", PREFECT_API_URL=api)
    eventually((project / "pids").exists)
    pids = [int(pid) for pid in (project / "pids").read_text().split()]
    [outer] = post(f"{api}/flow_runs/filter", {"flows": {"name": {"any_": ["outer"]}}})
    post(f"{api}/flow_runs/{outer['id']}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
    output, _ = process.communicate(timeout=300)
    assert (project / "checkpoint").read_text() == "saved", output
    assert not any(still_works(pid) for pid in pids)
    assert read_run(api, outer["id"])["state_type"] == "CANCELLED"


def test_a_second_try_goes_on_from_the_checkpoint(api: str, tmp_path: Path) -> None:
    """The first is ended, with its children, by a time-out that is long enough for the second."""
    project = make_project(tmp_path, "hangs once")
    plan = (project / "dvc.yaml").read_text()
    (project / "dvc.yaml").write_text(
        plan.replace("retries: 1, timeout_minutes: 5", "retries: 1, timeout_minutes: 0.2")
    )
    status, output = run_flows(project, "--targets", TRANSLATION, PREFECT_API_URL=api)
    assert status == 0, output
    assert not (project / "checkpoint").exists()
    task = task_runs(api, last_run(api))[TRANSLATION]
    assert (task["state_name"], task["run_count"]) == ("Ran", 2)
    log = log_of(api, task_run_id=task["id"])
    assert "goes on from saved" in log
    assert "took longer than its 0.2 minutes (meta.timeout_minutes in dvc.yaml)" in log
    assert not any(still_works(int(pid)) for pid in (project / "pids").read_text().split())


def test_a_run_that_was_killed_is_called_so_by_the_next(api: str, tmp_path: Path) -> None:
    """And what its stages left at work has ended, with a checkpoint, before the next one starts."""
    project = make_project(tmp_path, "checkpoints")
    process = start_flows(project, "--targets", TRANSLATION, PREFECT_API_URL=api)
    eventually((project / "pids").exists)
    pids = [int(pid) for pid in (project / "pids").read_text().split()]
    run = last_run(api)
    process.kill()
    process.communicate()
    assert all(still_works(pid) for pid in pids)
    assert read_run(api, run["id"])["state_type"] == "RUNNING"
    set_mode(project, "")
    status, output = run_flows(project, "--targets", TRANSLATION, PREFECT_API_URL=api)
    assert status == 0, output
    assert "a run before was killed; ended" in output
    assert not any(still_works(pid) for pid in pids)
    assert (project / "checkpoint").read_text() == "saved"
    assert read_run(api, run["id"])["state_type"] == "CRASHED"


class Broken(Listener):
    def line(self, stage: str, text: str) -> None:
        if stage == TRANSLATION:
            raise SystemExit(1)


@pytest.fixture
def pipeline(api: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The flow, to be called in this process, in a project in `tmp_path`."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows import pipeline

    monkeypatch.chdir(make_project(tmp_path))
    monkeypatch.setattr(pipeline, "workspace", partial(workspace, wait_seconds=0.5))
    with temporary_settings({PREFECT_API_URL: api}):  # Prefect may have read its settings before there was a server
        yield pipeline.pipeline
        pipeline.flush()  # or this process would try to when the server is no more


def test_a_run_with_a_stage_that_nobody_knows_the_end_of_has_failed(pipeline: Any, tmp_path: Path) -> None:
    token = listener.set(Broken())
    try:
        state = pipeline(targets=[TRANSLATION], return_state=True)
    finally:
        listener.reset(token)
    assert state.is_failed()
    assert state.message == f"{TRANSLATION}: its task ended before it did, see its log"
    assert not (tmp_path / "out" / "translation").exists()


def test_a_run_in_a_workspace_that_another_holds_is_skipped(pipeline: Any, tmp_path: Path) -> None:
    with workspace(tmp_path):
        state = pipeline(return_state=True)
    assert (state.type, state.name) == ("CANCELLED", "Skipped")
    assert f"process {os.getpid()}" in state.message


def test_a_schedule_fires_and_the_run_finishes(api: str, project: Path) -> None:
    set_mode(project, "")
    entrypoint = Path(__file__).parents[1] / "flows" / "pipeline.py"
    (project / "prefect.yaml").write_text(SCHEDULED.format(entrypoint=f"{entrypoint}:pipeline"))
    shutil.copy(ROOT / "automations.yaml", project)
    params = (project / "params.yaml").read_bytes()
    process = start_flows(project, module="flows.serve", PREFECT_API_URL=api)
    query = {"flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}, "tags": {"all_": ["auto-scheduled"]}}}
    try:
        run = eventually(lambda: post(f"{api}/flow_runs/filter", query))[0]
    finally:
        process.terminate()
        process.communicate(timeout=300)
    assert run["auto_scheduled"]
    names = [automation["name"] for automation in post(f"{api}/automations/filter")]
    assert names == ["runs-without-a-sign-of-life"]
    assert states(api, run) == {"prepare": "Ran"}
    assert (project / "params.yaml").read_bytes() == params
