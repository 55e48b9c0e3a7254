"""Where MLflow keeps the runs: the server of MLFLOW_TRACKING_URI, else an SQLite file in `.pipeline/`.

The file is created and upgraded once, under a lock: processes that meet on a fresh database break it for good.
"""

import logging
import os
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

from lightning_modules.errors import PipelineError
from stages.lineage import current_runs, without_credentials
from stages.spool import file_lock

LOCK = "mlflow.lock"
UI_ADDRESS = "http://127.0.0.1:5000"  # where `make ui` shows the default store
_SQLITE = "sqlite:///"
_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}


def tracking_uri(root: Path) -> str:
    """MLFLOW_TRACKING_URI, else the SQLite file under `root`; the path of such a file is absolute."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"{_SQLITE}{root / '.pipeline' / 'mlflow.db'}"
    return f"{_SQLITE}{database(uri).resolve()}" if uri.startswith(_SQLITE) else uri


def database(uri: str) -> Path:
    """The file of an SQLite store."""
    return Path(uri.removeprefix(_SQLITE))


def store_folder(uri: str, root: Path) -> Path:
    """Where locks, files of runs and the like lie: beside an SQLite file, whoever writes to it, else in `root`."""
    return database(uri).parent if uri.startswith(_SQLITE) else root / ".pipeline"


def ui_url(uri: str) -> str:
    """The address of the pages that show what is stored at `uri`."""
    return without_credentials(uri).rstrip("/") if uri.startswith("http") else UI_ADDRESS


def answers(uri: str) -> bool:
    """Whether somebody listens at a tracking URI that names a host; others are taken for reachable.

    Costs at most 2 s for each address of that host, after what the system takes to find them: some 10 s, with a usual
    resolver, where no name server answers.
    """
    try:
        parts = urlsplit(uri)
        port = parts.port or _PORTS.get(parts.scheme.split("+")[0])
        if not parts.hostname or not port:
            return True
        with socket.create_connection((parts.hostname, port), timeout=2):
            return True
    except (OSError, ValueError):
        return False


def run_pages(root: Path) -> dict[str, str]:
    """Of each stage whose outputs are those of a known run: the address of the run in MLflow's pages."""
    return {stage: f"{ui_url(tracking_uri(root))}/{run.link}" for stage, run in current_runs(root).items()}


def prepare_store(uri: str, root: Path) -> None:
    """Creates or upgrades a SQLite store, once for each version of MLflow. Raises PipelineError where that fails."""
    if not uri.startswith(_SQLITE):
        return
    from importlib.metadata import version

    folder = store_folder(uri, root)
    made_by = folder / "mlflow.version"
    with file_lock(folder / LOCK):
        wanted, there = f"{version('mlflow')} {uri}", database(uri).exists()
        if there and made_by.exists() and made_by.read_text() == wanted:
            return
        try:
            _upgrade(uri) if there else _create(uri)
        except Exception as error:
            reason = (str(error).strip().splitlines() or ["no reason given"])[-1]
            raise PipelineError(f"MLflow's database {uri} cannot be created or upgraded: {reason}") from error
        made_by.write_text(wanted)


def _create(uri: str) -> None:
    """MLflow makes a database as it opens it: 4 s, where its command takes 10."""
    from mlflow import MlflowClient

    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    MlflowClient(uri).search_experiments(max_results=1)


def _upgrade(uri: str) -> None:
    command = [sys.executable, "-m", "mlflow", "db", "upgrade", uri]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode != 0:
        raise OSError(done.stderr)
