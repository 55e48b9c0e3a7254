"""What the tests of tracking share: real servers, real processes, what the store holds."""

import os
import signal
import subprocess
import sys
import textwrap
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from processes import eventually

REPOSITORY = Path(__file__).parents[1]


def client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(uri)


def runs(uri: str, experiment: str = "a study") -> dict[str, Any]:
    found = client(uri).get_experiment_by_name(experiment)
    by_stage = {}
    for run in client(uri).search_runs([found.experiment_id]) if found else []:
        assert run.data.tags["pipeline.stage"] not in by_stage, "a run was made twice"
        by_stage[run.data.tags["pipeline.stage"]] = run
    return by_stage


def history(uri: str, run_id: str, metric: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client(uri).get_metric_history(run_id, metric)]


def python(folder: Path, script: str, *arguments: str, **environment: str) -> None:
    """Runs a script in `folder` with our modules at hand; its failure is not an error here (some are killed)."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW", "PIPELINE"))}
    command = [sys.executable, "-c", textwrap.dedent(script), *arguments]
    subprocess.run(
        command, cwd=folder, env=kept | {"PYTHONPATH": str(REPOSITORY)} | environment, check=False, timeout=120
    )


def shell(folder: Path, command: str) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(command.split(), cwd=folder, env=os.environ | {"PATH": path}, check=True, capture_output=True)


@contextmanager
def server(root: Path, port: int, *arguments: str, **changes: str) -> Iterator[Callable[[], None]]:
    """A real tracking server, with more `arguments` and other variables in its environment.

    Gives the function that kills it, and kills it at the end of the block.
    """
    store = [
        "--backend-store-uri",
        f"sqlite:///{root}/.pipeline/mlflow.db",
        "--artifacts-destination",
        str(root / "artifacts"),
    ]
    address = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"} | changes
    environment.pop("MLFLOW_TRACKING_URI", None)
    command = [sys.executable, "-m", "mlflow", "server", *store, *address, *arguments]
    with (root / "server.log").open("a") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)

    def healthy() -> bool:
        assert process.poll() is None, (root / "server.log").read_text()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def kill() -> None:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    try:
        eventually(healthy)
        yield kill
    finally:
        kill()
