"""Fixtures that several modules use."""

import json
import os
import platform
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported: workers side by side have about a core each
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import lightning_modules.lightning  # noqa: F401 - before a test imports Lightning with all that it brings along
if platform.machine() in ("x86_64", "AMD64"):  # before ctranslate2 is imported: its default library needs VNNI
    os.environ.setdefault("CT2_USE_MKL", "1")

import dvc  # noqa: F401 - its log keeps the stream that it finds at import: not one of a single test
import pytest
from hypothesis import HealthCheck, settings
from scheduling import pytest_handlecrashitem, pytest_xdist_make_scheduler  # noqa: F401 - what pytest-xdist asks for

from stages.tracking_store import prepare_store, tracking_uri

# What takes over half a minute, the longest first: begun last, one would keep one worker at work while the others idle.
LONGEST = (
    "end_to_end", "callbacks", "worker", "elastic", "your_data", "parallel_training", "roll_back", "pipeline", "killed",
    "architectures", "sweep", "training", "watch", "register", "onnx", "deploy_processes", "beam_search", "cluster",
    "sender", "mlflow_server", "guards", "main", "ctranslate2_engine", "module", "run_stage", "imports", "seeds",
    "report", "status", "decoding", "ctranslate2", "prepare_memory", "evaluate", "pretrain", "served_model", "sharing",
    "recovery", "mlflow_killed", "overfit",
)  # fmt: skip


# How long an example takes says how busy the machine is.
settings.register_profile("busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy machine")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: a fifth of the time, tests wait for servers, schedules, processes they ended."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole files, the longest first; `make test` asks xdist to hand them out in this order."""
    places = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.fixture(autouse=True)
def _tracking_uri_is_left_as_it_was() -> Iterator[None]:
    """MLflow writes the address that it is told into the environment, where the next test would find it."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    yield
    if before is None:
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    else:
        os.environ["MLFLOW_TRACKING_URI"] = before


@pytest.fixture(autouse=True)
def _no_flow_is_left_at_work() -> Iterator[None]:
    """Where a test fails half-way: its processes would slow all others down, and hold their workspace."""
    yield
    if toy_project := sys.modules.get("toy_project"):
        toy_project.end_started()


@pytest.fixture
def matrix_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that says it has them (AMX); products of bfloat16 are the same numbers without."""
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: True)


@pytest.fixture(scope="session")
def fresh_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database, made once: creating one takes seconds."""
    root = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)  # where MLflow's own default experiment keeps its files
        prepare_store(tracking_uri(root), root)
    return root / ".pipeline" / "mlflow.db"


@pytest.fixture
def study(tmp_path: Path, fresh_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder whose database exists, as the working directory."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "PIPELINE_RUN", "PIPELINE_FLOW_URL", "DVC_STAGE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    database = tmp_path / ".pipeline" / "mlflow.db"
    database.parent.mkdir()
    database.write_bytes(fresh_store.read_bytes())
    version = (fresh_store.parent / "mlflow.version").read_text()
    (tmp_path / ".pipeline" / "mlflow.version").write_text(version.replace(str(fresh_store), str(database)))
    (tmp_path / "params.yaml").write_text("tracking: {experiment: a study}\n")
    return tmp_path


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real Prefect server, which this process's environment names too.

    A module has its own: a start takes 6 s of a core; to stay at work for the modules to come would take 2 % of one.
    """
    from flows.server import prefect_server

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PREFECT_API_URL", raising=False)
        with prefect_server(tmp_path_factory.mktemp("server")) as url:
            yield url


@pytest.fixture
def webhook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """An address that takes one message and then is out of order, and what was posted to it."""
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
    server.server_close()
