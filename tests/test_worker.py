"""The deployments of prefect.yaml on a real Prefect server, run by real process workers: cancelled, killed, retried."""

import json
import os
import re
import subprocess
import sys
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from prefect_api import log_of, post, read_run, states
from processes import eventually, still_works
from stage_runs import PRETRAIN, SAVE_EVERY, assert_same_result, checkpoints, finish
from stage_runs import workspace as training_workspace
from tiny import read_json
from toy_project import ROOT, make_project, set_mode

TRANSLATION = "finetune@translation"
LEAP_DAY = "0 2 29 2 *"
TRAINING = """
stages:
  pretrain:
    cmd: python -m stages.pretrain
    deps: [data/tokens/pretraining, data/tokenizer]
    params: [seed, model, pretrain]
    outs: [models/pretrained]
    meta: {devices: all}
"""


@pytest.fixture(scope="module")
def api(api: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """With what a worker and an operator set up once; a run without a sign of life for 45 s is called crashed."""
    sooner, usual = tmp_path_factory.mktemp("sooner"), (ROOT / "automations.yaml").read_text()
    assert usual.count("within: 90") == 1
    (sooner / "automations.yaml").write_text(usual.replace("within: 90", "within: 45"))
    prefect(ROOT, "work-pool", "create", "--type", "process", "workstation")
    prefect(sooner, "automation", "create", "--from-file", "automations.yaml")
    return api


def prefect(folder: Path, *arguments: str) -> str:
    """Runs Prefect's command line in a folder."""
    done = subprocess.run(
        [sys.executable, "-m", "prefect", *arguments], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def with_the_code(folder: Path, pull: bool = False) -> Path:
    """Our code and prefect.yaml beside the stages, with schedules that fire in no test but on a leap day.

    `pull`: with the lines for clones in other folders.
    """
    for room in ("flows", "stages", "lightning_modules"):
        if not (folder / room).exists():
            (folder / room).symlink_to(ROOT / room)
    lines = (ROOT / "prefect.yaml").read_text().splitlines(keepends=True)
    start = lines.index("# pull:\n")
    if pull:
        lines[start : start + 3] = [line.removeprefix("# ") for line in lines[start : start + 3]]
    (folder / "prefect.yaml").write_text(re.sub(r'cron: ".*?"', f'cron: "{LEAP_DAY}"', "".join(lines)))
    return folder


@pytest.fixture(scope="module")
def deployed(api: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of which everything is deployed."""
    folder = with_the_code(make_project(tmp_path_factory.mktemp("deployed")))
    prefect(folder, "deploy", "--all")
    return folder


@pytest.fixture
def project(deployed: Path) -> Path:
    """The same without what the stages of the test before have left."""
    for name in ("pids", "checkpoint", "go"):
        (deployed / name).unlink(missing_ok=True)
    set_mode(deployed, "")
    return deployed


@contextmanager
def working(folder: Path, **environment: str) -> Iterator[psutil.Process]:
    """A process worker, started in a folder that has nothing to do with the project."""
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    log = (elsewhere / "log.txt").open("a")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PIPELINE_", "PYTHONPATH"))}
    process = subprocess.Popen(
        [sys.executable, "-m", "prefect", "worker", "start", "--pool", "workstation", "--limit", "1"],
        cwd=elsewhere,
        env=kept | {"PREFECT_WORKER_QUERY_SECONDS": "2"} | environment,
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    worker = psutil.Process(process.pid)
    try:
        yield worker
    finally:
        left = [worker, *worker.children(recursive=True)] if worker.is_running() else []
        for member in left:
            member.kill()
        process.wait()


def kill(worker: psutil.Process) -> None:
    """The worker alone, not what it has started."""
    worker.kill()
    worker.wait(30)


def create_run(api: str, deployment: str = "on-demand", **parameters: Any) -> str:
    (found,) = post(f"{api}/deployments/filter", {"deployments": {"name": {"any_": [deployment]}}})
    return str(post(f"{api}/deployments/{found['id']}/create_flow_run", {"parameters": parameters})["id"])


def ended(api: str, run: str, seconds: float = 300.0) -> dict[str, Any]:
    def final() -> dict[str, Any] | None:
        found = read_run(api, run)
        return found if found["state_type"] in ("COMPLETED", "FAILED", "CANCELLED", "CRASHED") else None

    return eventually(final, seconds)


def at_work(project: Path) -> list[int]:
    """The processes of the translation stage, once they are at work."""
    eventually((project / "pids").exists)
    return [int(pid) for pid in (project / "pids").read_text().split()]


def engine(worker: psutil.Process) -> psutil.Process:
    """The process that runs the flow."""
    (found,) = (child for child in worker.children() if "prefect.engine" in child.cmdline())
    return found


def test_a_worker_anywhere_runs_what_was_deployed(api: str, project: Path, tmp_path: Path) -> None:
    deployments = {found["name"]: found for found in post(f"{api}/deployments/filter")}
    schema = deployments["on-demand"]["parameter_openapi_schema"]["properties"]
    assert schema["targets"]["description"].startswith("Only these stages of dvc.yaml")
    assert schema["overrides"]["description"].startswith("Other values for keys of params.yaml")
    assert deployments["nightly"]["tags"] == ["scheduled", "training"]
    assert deployments["nightly"]["schedules"][0]["schedule"]["cron"] == LEAP_DAY
    for wrong in ({"targets": "prepare"}, {"overrides": ["pretrain.steps=1"]}):
        with pytest.raises(urllib.error.HTTPError) as refused:
            create_run(api, **wrong)
        assert refused.value.code == 409
        assert f"Validation failed for field '{next(iter(wrong))}'" in json.load(refused.value)["detail"]
    with working(tmp_path):
        run = create_run(api, targets=[TRANSLATION], overrides={"prepare.min_characters": 4})
        assert ended(api, run)["state_name"] == "Ran"
        assert states(api, {"id": run}) == {"prepare": "Ran", TRANSLATION: "Ran"}
        assert (project / "out" / "translation").is_file()
        run = create_run(api, targets=["finetun@translation"])
        assert "did you mean finetune@translation?" in ended(api, run)["state"]["message"]


def test_cancelling_ends_every_process_and_leaves_a_checkpoint(api: str, project: Path, tmp_path: Path) -> None:
    set_mode(project, "checkpoints")
    with working(tmp_path) as worker:
        run = create_run(api, targets=[TRANSLATION])
        processes = [*at_work(project), engine(worker).pid]
        post(f"{api}/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
        eventually(lambda: not any(map(still_works, processes)))
        found = ended(api, run)
        assert found["state_type"] == "CANCELLED"
        assert (project / "checkpoint").read_text() == "saved"
        assert worker.is_running()


def test_a_run_goes_on_when_its_worker_is_killed_and_obeys_without_it(api: str, project: Path, tmp_path: Path) -> None:
    set_mode(project, "waits")
    with working(tmp_path) as worker:
        run = create_run(api, targets=[TRANSLATION])
        at_work(project)
        kill(worker)
    (project / "go").touch()
    assert ended(api, run)["state_name"] == "Ran"
    assert (project / "out" / "translation").is_file()

    set_mode(project, "checkpoints")
    (project / "pids").unlink()
    with working(tmp_path) as worker:
        run = create_run(api, targets=[TRANSLATION])
        pids = at_work(project)
        kill(worker)
    assert all(map(still_works, pids))
    post(f"{api}/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
    eventually(lambda: not any(map(still_works, pids)))
    assert ended(api, run)["state"]["message"].startswith("cancelled")
    assert (project / "checkpoint").read_text() == "saved"


def test_a_killed_flow_is_crashed_and_told_and_its_stages_are_ended_by_the_next(
    api: str, tmp_path: Path, webhook: tuple[str, list[dict[str, Any]]]
) -> None:
    """As when the system ends it for want of memory; also with a worker for whom the project lies elsewhere."""
    address, told = webhook
    for name in ("project", "clone"):
        (tmp_path / name).mkdir()
    project = with_the_code(make_project(tmp_path / "project"), pull=True)
    clone = with_the_code(make_project(tmp_path / "clone", "checkpoints"))
    prefect(project, "deploy", "--name", "on-demand")
    with working(tmp_path, PIPELINE_HOME=str(clone), PIPELINE_WEBHOOK=address) as worker:
        run = create_run(api, targets=[TRANSLATION])
        pids = at_work(clone)
        engine(worker).kill()
        assert ended(api, run)["state_type"] == "CRASHED"
        eventually(lambda: told)
        assert told[0]["state"] == "Crashed"
        assert run in told[0]["url"]
        assert all(map(still_works, pids))  # they have not noticed
        set_mode(clone, "")
        run = create_run(api, targets=[TRANSLATION])
        assert ended(api, run)["state_name"] == "Ran"
        # Prefect sends logs a moment later than states.
        told_so = "a run before was killed; ended"
        eventually(lambda: any(line.startswith(told_so) for line in log_of(api, flow_run_id=run)))
    assert not any(map(still_works, pids))
    assert (clone / "checkpoint").read_text() == "saved"
    assert not (project / "out").exists()


def test_a_training_that_is_killed_with_all_around_it_goes_on_and_ends_as_if_nothing_had_been(
    api: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nobody answers there
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    project = with_the_code(training_workspace(tmp_path / "project"))
    (project / "dvc.yaml").write_text(TRAINING)
    prefect(project, "deploy", "--name", "on-demand")
    with working(tmp_path) as worker:
        run = create_run(api)
        eventually(lambda: len(checkpoints(project)) > 0, 300.0)
        everything = [worker, *worker.children(recursive=True)]
        assert any("stages.pretrain" in process.cmdline() for process in everything)
        for process in everything:
            process.kill()
        worker.wait(30)
    assert read_run(api, run)["state_type"] == "RUNNING"
    assert not (project / "models/pretrained/training.json").exists()

    uninterrupted = training_workspace(tmp_path / "uninterrupted")
    finish(uninterrupted, PRETRAIN)

    crashed = ended(api, run, 400.0)  # by automations.yaml
    assert (crashed["state_type"], crashed["state"]["message"].split(":")[0]) == ("CRASHED", "killed")
    with working(tmp_path):
        post(f"{api}/flow_runs/{run}/set_state", {"state": {"type": "SCHEDULED", "name": "AwaitingRetry"}})
        assert ended(api, run, 300.0)["state_name"] == "Ran"
    assert_same_result(project / "models/pretrained", uninterrupted / "models/pretrained")
    assert read_json(project / "models/pretrained/training.json")["resumed_from"] >= SAVE_EVERY
