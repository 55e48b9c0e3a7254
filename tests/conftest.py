"""Fixtures that several modules use."""

import os
from collections.abc import Iterator
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported: workers side by side have a core each
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import dvc  # noqa: F401 - its log keeps the stream that it finds at import: not one of a single test
import pytest

from stages.delivery import prepare_store, tracking_uri


@pytest.fixture(autouse=True)
def _tracking_uri_is_left_as_it_was() -> Iterator[None]:
    """MLflow writes the address that it is told into the environment, where the next test would find it."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    yield
    if before is None:
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    else:
        os.environ["MLFLOW_TRACKING_URI"] = before


@pytest.fixture(scope="session")
def fresh_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database, made once: creating one takes seconds."""
    root = tmp_path_factory.mktemp("store")
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
