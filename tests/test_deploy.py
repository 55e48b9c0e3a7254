"""What stands in deploy/ and the Dockerfile, held against schemas, linters, Docker's own rules and one another."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from docker.utils.build import exclude_paths
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
CORE = ("workspace", "prefect", "mlflow", "worker")


def documents(name: str) -> list[dict[str, Any]]:
    return list(YAML(typ="safe").load_all(DEPLOY / "kubernetes" / f"{name}.yaml"))


def compose() -> dict[str, Any]:
    return dict(YAML(typ="safe").load(DEPLOY / "compose.yaml"))


def job_pods() -> dict[str, Any]:
    """The pods of the training job."""
    (job,) = documents("pytorchjob")
    return {name: replica["template"]["spec"] for name, replica in job["spec"]["pytorchReplicaSpecs"].items()}


def flow_run_job() -> dict[str, Any]:
    """The Job that a Kubernetes worker makes of its template for a flow run, with the values that it has by default."""
    template = json.loads((DEPLOY / "prefect/kubernetes.json").read_text())
    given = {name: variable.get("default") for name, variable in template["variables"]["properties"].items()}
    given |= {"name": "run", "labels": {"a": "b"}, "command": ["prefect", "flow-run", "execute"]}

    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: new for key, old in value.items() if (new := filled(old)) is not None}
        if isinstance(value, list):
            return [filled(item) for item in value]
        if isinstance(value, str) and (whole := re.fullmatch(r"{{ (\w+) }}", value)):
            return given[whole[1]]
        return re.sub(r"{{ (\w+) }}", lambda found: str(given[found[1]]), value) if isinstance(value, str) else value

    job: dict[str, Any] = filled(template["job_configuration"]["job_manifest"])
    container = job["spec"]["template"]["spec"]["containers"][0]
    container["env"] = [
        {"name": name, "value": value} for name, value in container["env"].items()
    ]  # as the worker does
    return job


def pods() -> dict[str, dict[str, Any]]:
    """Every pod that anything here would start."""
    made = {
        name: found["spec"]["template"]["spec"] for name in CORE for found in documents(name) if "apps" in str(found)
    }
    return made | job_pods() | {"flow run": flow_run_job()["spec"]["template"]["spec"]}


@pytest.mark.parametrize("name", CORE)
def test_manifests_are_as_kubernetes_wants_them(name: str) -> None:
    for found in documents(name):
        kubernetes_validate.validate(found, "1.37", strict=True)


def test_pods_of_jobs_are_as_kubernetes_wants_them() -> None:
    kubernetes_validate.validate(flow_run_job(), "1.37", strict=True)
    for name, spec in job_pods().items():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name.lower()}, "spec": spec}
        kubernetes_validate.validate(pod, "1.37", strict=True)
    assert all(spec["containers"][0]["name"] == "pytorch" for spec in job_pods().values()), "the operator looks for it"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod | {"spec": spec | {"volums": []}}, "1.37", strict=True)


def test_pods_may_do_what_the_namespace_allows_and_no_more() -> None:
    """Kubernetes' level `restricted`, which the namespace enforces, and the root file system read-only besides."""
    assert documents("workspace")[0]["metadata"]["labels"] == {"pod-security.kubernetes.io/enforce": "restricted"}
    for name, spec in pods().items():
        assert spec["securityContext"]["runAsNonRoot"], name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert spec["automountServiceAccountToken"] is False, name
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}
            }, name  # fmt: skip
            assert {"cpu", "memory"} <= container["resources"]["limits"].keys(), name


def test_what_the_manifests_refer_to_is_there() -> None:
    everything = [found for name in CORE for found in documents(name)]
    there = {(found["kind"], found["metadata"]["name"]) for found in everything}
    secrets = re.findall(r"create secret generic (\S+) \\\n((?:# .*--from-literal.*\n)+)", text("workspace"))
    keys = {name: set(re.findall(r"--from-literal=(\w+)=", told)) for name, told in secrets}
    for name, spec in pods().items():
        for volume in spec["volumes"]:
            if claim := volume.get("persistentVolumeClaim"):
                assert ("PersistentVolumeClaim", claim["claimName"]) in there, name
        mounted = {mount["name"] for container in spec["containers"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in spec["volumes"]}, name
        for whole in spec["containers"][0].get("envFrom", []):
            assert whole["secretRef"]["name"] == "pipeline", "what clients need, not what servers sign with"
        for entry in spec["containers"][0]["env"]:
            if source := entry.get("valueFrom"):
                assert source["secretKeyRef"]["key"] in keys[source["secretKeyRef"]["name"]], name
            elif address := re.match(r"http://(\w+):(\d+)", entry["value"]):
                port = next(s["spec"]["ports"][0]["port"] for s in everything if _is_service(s, address[1]))
                assert port == int(address[2]) or address[1] == "localhost", name


def _is_service(found: dict[str, Any], name: str) -> bool:
    return found["kind"] == "Service" and (found["metadata"]["name"] == name or name == "localhost")


def text(name: str) -> str:
    return (DEPLOY / "kubernetes" / f"{name}.yaml").read_text()


def test_nothing_is_open_to_the_world() -> None:
    for found in (found for name in CORE for found in documents(name)):
        if found["kind"] == "Service":
            assert found["spec"]["type"] == "ClusterIP"
    for name, service in compose()["services"].items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert service["cap_drop"] == ["ALL"], name
        assert service["read_only"], name


def test_a_prefect_that_is_away_ends_no_training() -> None:
    """A worker calls itself unhealthy then; Kubernetes kills what is not alive, and waits for what is not ready."""
    (container,) = pods()["worker"]["containers"]
    assert "livenessProbe" not in container
    assert "readinessProbe" in container


def test_a_run_in_a_container_of_its_own_finds_prefect_and_may_load_what_it_compiles() -> None:
    variables = json.loads((DEPLOY / "prefect/docker.json").read_text())["variables"]["properties"]
    worker = compose()["services"]["worker"]
    addresses = {name: worker["environment"][name] for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI")}
    assert variables["env"]["default"] == addresses
    assert variables["networks"]["default"] == [f"{compose()['name']}_default"]
    assert "exec" in variables["container_create_kwargs"]["default"]["tmpfs"]["/tmp"].split(",")
    assert "exec" in worker["tmpfs"][0].split(",")


def test_one_image_of_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    images = {container["image"] for spec in pods().values() for container in spec["containers"]}
    images |= {service["image"] for service in compose()["services"].values()}
    template = json.loads((DEPLOY / "prefect/docker.json").read_text())
    images.add(template["variables"]["properties"]["image"]["default"])
    assert images == {f"transformer-pipeline:{version}"}
    assert f"docker build -t transformer-pipeline:{version}" in (ROOT / "Dockerfile").read_text()


def test_the_dockerfile_is_clean() -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "hadolint", ROOT / "Dockerfile"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_gets_the_code_and_nothing_else() -> None:
    """By the rules of Docker's own client: which files are sent to the engine."""
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    sent = {name for name in exclude_paths(str(ROOT), patterns) if not (ROOT / name).is_dir()}
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    known = set(subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0"))
    assert sent - {"Dockerfile", ".dockerignore"} <= known, "what git ignores would be sent"
    rooms = ("flows/", "stages/", "lightning_modules/", "deploy/", "recipes/", ".dvc/config")
    needed = {name for name in known if name.startswith(rooms) or "/" not in name} - {""}
    needed = {
        name for name in needed if (ROOT / name).exists() and not name.startswith((".git", "Dockerfile", ".docker"))
    }
    assert needed <= sent
    for source in re.findall(r"^COPY (?!--from)(.*) \S+$", (ROOT / "Dockerfile").read_text(), re.M):
        assert set(source.split()) - {"."} <= sent


SCRIPTS = ["workspace.sh", "worker.sh", "slurm/train.sbatch"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_shell_can_read_the_scripts(name: str) -> None:
    path = DEPLOY / name
    shell = "bash" if "bash" in path.read_text().splitlines()[0] else "sh"
    assert subprocess.run([shell, "-n", path], capture_output=True, text=True).stderr == ""


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_the_scripts_are_clean() -> None:
    command = ["shellcheck", *(DEPLOY / name for name in SCRIPTS)]
    assert subprocess.run(command, capture_output=True, text=True).stdout == ""


def test_a_workspace_gets_the_code_once_and_keeps_what_is_its_own(tmp_path: Path) -> None:
    image, workspace, clone = (tmp_path / name for name in ("image", "workspace", "clone"))
    for folder in (image / "flows", image / ".dvc", workspace, clone / ".git"):
        folder.mkdir(parents=True)
    shutil.copytree(DEPLOY, image / "deploy")
    (image / "params.yaml").write_text("steps: 1\n")
    (image / "flows/old.py").write_text("old")
    (image / ".dvcignore").write_text("*.pyc\n")

    def start(folder: Path, of: str = "flows") -> str:
        command = ["sh", str(image / "deploy/workspace.sh"), "ls", of]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout

    assert start(workspace).splitlines()[-1] == "old.py"
    assert start(workspace) == "old.py\n", "nothing to bring a second time"
    (workspace / "params.yaml").write_text("steps: 2\n")
    (workspace / "models").mkdir()
    (workspace / "flows/__pycache__").mkdir()
    shutil.move(image / "flows/old.py", image / "flows/new.py")
    (image / "params.yaml").write_text("steps: 3\n")
    assert start(workspace) == "bringing flows of the image into the workspace\nnew.py\n"
    assert (workspace / "params.yaml").read_text() == "steps: 2\n"
    assert (workspace / "models").is_dir()
    assert start(clone, of=".") == ""
    assert [path.name for path in clone.iterdir()] == [".git"]
