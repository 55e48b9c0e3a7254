"""The flow against one real Prefect server, started once: states, logs, artifacts, cancelling, a schedule that fires.

The last guards the pins of fastapi and sqlalchemy: with wrong ones the server does not start, or fires no schedule.
"""

import json
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

import pytest
from processes import still_works
from toy_project import make_project, run_flows, set_mode, start_flows, write_metrics

from flows.server import prefect_server

T = TypeVar("T")
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
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PREFECT_API_URL", raising=False)
        with prefect_server(tmp_path_factory.mktemp("server")) as url:
            yield url


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_project(tmp_path_factory.mktemp("project"))
    write_metrics(folder)
    return folder


def post(url: str, body: dict[str, Any] | None = None) -> Any:
    request = urllib.request.Request(url, json.dumps(body or {}).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as reply:
        return json.load(reply)


def eventually(get: Callable[[], T], seconds: float = 60.0) -> T:
    """The first true value of `get`."""
    deadline = time.monotonic() + seconds
    while not (value := get()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.5)
    return value


def last_run(api: str) -> dict[str, Any]:
    return dict(post(f"{api}/flow_runs/filter", {"sort": "EXPECTED_START_TIME_DESC", "limit": 1})[0])


def task_runs(api: str, run: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The task runs by name, once all have ended: Prefect records their states a moment later than they happen."""

    def ended() -> dict[str, dict[str, Any]]:
        found = post(f"{api}/task_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})
        final = all(task["state_type"] in ("COMPLETED", "FAILED", "CANCELLED", "CRASHED") for task in found)
        return {task["name"]: task for task in found} if final else {}

    return eventually(ended)


def states(api: str, run: dict[str, Any]) -> dict[str, str]:
    return {name: task["state_name"] for name, task in task_runs(api, run).items()}


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
    query = {"logs": {"task_run_id": {"any_": [tasks[TRANSLATION]["id"]]}}}
    log = [line["message"] for line in post(f"{api}/logs/filter", query)]
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


@pytest.fixture
def webhook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """An address, and what was posted to it."""
    told: list[dict[str, Any]] = []

    class Takes(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(503 if len(told) > 1 else 204)
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Takes)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/secret", told
    server.shutdown()


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
    logs = post(f"{api}/logs/filter", {"logs": {"flow_run_id": {"any_": [run["id"]]}}})
    assert any(line["message"].endswith("could not be told: status 503") for line in logs)
    assert not any("secret" in line["message"] for line in logs)  # the address may open a channel to whoever has it
    tasks = task_runs(api, run)
    assert set(tasks) == {"prepare", TRANSLATION}
    assert tasks[TRANSLATION]["state_name"] == "Failed"
    assert tasks[TRANSLATION]["run_count"] == 2


def test_cancelling_in_the_ui_ends_the_training(api: str, project: Path) -> None:
    set_mode(project, "checkpoints")
    process = start_flows(project, PREFECT_API_URL=api)
    eventually((project / "pids").exists)
    pids = [int(pid) for pid in (project / "pids").read_text().split()]
    run = last_run(api)
    post(f"{api}/flow_runs/{run['id']}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, output
    assert (project / "checkpoint").exists()
    assert not any(still_works(pid) for pid in pids)
    assert last_run(api)["state_type"] == "CANCELLED"
    ended = states(api, run)
    assert ended[TRANSLATION] == "Stopped"
    assert ended["report"] == "NotRun"


def test_a_schedule_fires_and_the_run_finishes(api: str, project: Path) -> None:
    set_mode(project, "")
    entrypoint = Path(__file__).parents[1] / "flows" / "pipeline.py"
    (project / "prefect.yaml").write_text(SCHEDULED.format(entrypoint=f"{entrypoint}:pipeline"))
    params = (project / "params.yaml").read_bytes()
    process = start_flows(project, module="flows.serve", PREFECT_API_URL=api)
    query = {"flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}, "tags": {"all_": ["auto-scheduled"]}}}
    try:
        run = eventually(lambda: post(f"{api}/flow_runs/filter", query))[0]
    finally:
        process.terminate()
        process.communicate(timeout=60)
    assert run["auto_scheduled"]
    assert states(api, run) == {"prepare": "Ran"}
    assert (project / "params.yaml").read_bytes() == params
