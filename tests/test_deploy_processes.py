"""What containers would run, run as plain processes: the servers of the manifests, the image's worker, its pools."""

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from prefect_api import post, read_run
from processes import eventually, free_port, still_works
from ruamel.yaml import YAML
from test_deploy import DEPLOY, ROOT, documents
from toy_project import make_project, set_mode

POOLS = ("docker", "kubernetes")
BIN = Path(sys.executable).parent


def answer(url: str, host: str, **headers: str) -> int:
    """The status of the answer to a request that comes with the name `host`."""
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, headers={"Host": host, **headers}), timeout=10
        ) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def container(name: str) -> dict[str, Any]:
    """The one container of a Deployment."""
    return dict(documents(name)[0]["spec"]["template"]["spec"]["containers"][0])


@contextmanager
def served(name: str, data: Path, port: int, **secrets: str) -> Iterator[dict[str, Any]]:
    """The server of a Deployment as a process here: its command, its variables, but our port, our folder, one host."""
    found = container(name)
    kept = str(found["ports"][0]["containerPort"])
    command = [part.replace("/data", str(data)) for part in [*found["command"], *found.get("args", [])]]
    command = [str(port) if part == kept else part.replace("0.0.0.0", "127.0.0.1") for part in command]
    given = {entry["name"]: entry.get("value") or secrets[entry["name"]] for entry in found["env"]}
    given = {key: value.replace("/data", str(data)) for key, value in given.items()}
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT", "MLFLOW"))}
    with (data / "log.txt").open("w") as log:
        process = subprocess.Popen(
            [BIN / command[0], *command[1:]],
            cwd=data,
            env=clean | given | {"HOME": str(data), "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"},
            stdout=log,
            stderr=log,
        )
    try:
        yield found
    finally:
        process.terminate()
        process.wait(timeout=300)


@pytest.mark.parametrize(
    ("name", "secrets"),
    [
        ("mlflow", {"MLFLOW_FLASK_SERVER_SECRET_KEY": "random", "MLFLOW_AUTH_ADMIN_PASSWORD": "a long password"}),
        ("prefect", {"PREFECT_SERVER_API_AUTH_STRING": "admin:a long password"}),
    ],
)
def test_a_server_starts_answers_its_probes_and_nobody_without_a_password(
    tmp_path: Path, name: str, secrets: dict[str, str]
) -> None:
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    with served(name, tmp_path, port, **secrets) as found:
        probe = f"{address}{found['startupProbe']['httpGet']['path']}"
        eventually(lambda: answer(probe, "10.1.2.3:1234") == 200)  # a pod is probed by its address
        asked = {"mlflow": "/api/2.0/mlflow/experiments/get?experiment_id=0", "prefect": "/api/admin/version"}[name]
        assert answer(f"{address}{asked}", f"{name}:{found['ports'][0]['containerPort']}") == 401
        if name == "mlflow":
            assert answer(f"{address}{asked}", "elsewhere.example") == 403


def test_the_worker_of_an_image_and_the_pools_of_containers_on_a_real_server(api: str, tmp_path: Path) -> None:
    image, workspace = tmp_path / "image", tmp_path / "workspace"
    image.mkdir()
    workspace.mkdir()
    make_project(image)
    for name in ("flows", "stages", "lightning_modules"):
        (image / name).symlink_to(ROOT / name)
    shutil.copytree(DEPLOY, image / "deploy")
    (image / ".dvc").mkdir()
    for name in ("automations.yaml", ".dvc/config", ".dvcignore"):
        shutil.copy(ROOT / name, image / name)
    never = re.sub(r"cron: .*", 'cron: "0 0 29 2 *"', (ROOT / "prefect.yaml").read_text())
    (image / "prefect.yaml").write_text(never)
    command = ["sh", str(image / "deploy/workspace.sh"), "sh", "deploy/worker.sh", "workstation", "--name", "tested"]
    environment = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "PREFECT_WORKER_QUERY_SECONDS": "1"}
    (automation,) = YAML(typ="safe").load(ROOT / "automations.yaml")["automations"]
    post(f"{api}/automations/", automation | {"description": "as it was"})
    with (tmp_path / "log.txt").open("w") as log:
        process = subprocess.Popen(command, cwd=workspace, env=environment, stdout=log, stderr=log)
    try:
        eventually(lambda: online(api) or process.poll() is not None)
        assert process.poll() is None, (tmp_path / "log.txt").read_text()
        command = [sys.executable, "-m", "dvc", "stage", "list", "--name-only"]
        listed = subprocess.run(command, cwd=workspace, capture_output=True, text=True)
        assert "finetune@translation" in listed.stdout.split(), listed.stderr  # DVC, where there is no git
        deployments = {found["name"]: found for found in post(f"{api}/deployments/filter")}
        assert deployments.keys() == {
            found["name"] for found in YAML(typ="safe").load(ROOT / "prefect.yaml")["deployments"]
        }
        for kind in POOLS:
            template = str(DEPLOY / "prefect" / f"{kind}.json")
            run(workspace, "work-pool", "create", f"our-{kind}", "--type", kind, "--base-job-template", template)
            run(workspace, "--no-prompt", "deploy", "--name", "on-demand", "--pool", f"our-{kind}")
            (found,) = post(f"{api}/deployments/filter", {"deployments": {"name": {"any_": ["on-demand"]}}})
            assert found["work_pool_name"] == f"our-{kind}"
            (pool,) = post(f"{api}/work_pools/filter", {"work_pools": {"name": {"any_": [f"our-{kind}"]}}})
            assert pool["base_job_template"] == json.loads(Path(template).read_text())
        (there,) = post(f"{api}/automations/filter")
        assert there["description"] == automation["description"], "an older one is brought up to date"

        set_mode(workspace, "checkpoints")  # SIGTERM to the worker, as a node that is drained sends it
        given = {"parameters": {"targets": ["finetune@translation"]}}
        flow_run = post(f"{api}/deployments/{deployments['nightly']['id']}/create_flow_run", given)["id"]
        eventually((workspace / "pids").exists)
        stages = [int(pid) for pid in (workspace / "pids").read_text().split()]
        process.terminate()
        assert process.wait(120) == 0, (tmp_path / "log.txt").read_text()
        assert not any(map(still_works, stages))
        assert (workspace / "checkpoint").read_text() == "saved"
        assert read_run(api, flow_run)["state"]["message"].startswith("SIGTERM: the next run goes on")
    finally:
        for member in [*psutil.Process(process.pid).children(recursive=True)] if process.poll() is None else []:
            member.kill()
        process.kill()
        process.wait()


def online(api: str) -> bool:
    try:
        found = post(f"{api}/work_pools/workstation/workers/filter")
    except urllib.error.HTTPError:  # no such pool yet
        return False
    return any(worker["name"] == "tested" and worker["status"] == "ONLINE" for worker in found)


def run(folder: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "prefect", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
