"""One open run in MLflow: its journal, the connection, and the thread that carries from the one to the other.

`stages.tracking` is what stages call; this is its engine room.
"""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stages import stage_log
from stages.delivery import Delivery
from stages.lineage import lineage, pipeline_run, remember_latest, without_credentials
from stages.logged import Logged
from stages.outputs import whole_file
from stages.refusals import trouble
from stages.scrub import scrubbed
from stages.sender import Sender
from stages.sending import add_log, let_go, log_size, send, send_abandoned
from stages.spool import SPOOLS, Journal, Operation, Spool
from stages.tracking_store import answers, tracking_uri
from stages.warning import warn

SEND_EVERY = 2.0  # seconds between two looks into the journal
RETRY_AFTER = 15.0  # seconds that a server which did not answer is left alone
TAKE_WAIT = 10.0  # seconds that another stage may take to send what is left of a killed run
SAMPLE_EVERY = 10.0  # seconds between two samples of the machine's load
SHOW_LOG_EVERY = 60.0  # seconds between two copies of a running stage's log
LAST_SEND = 60.0  # seconds that a stage's end may wait for a slow server to take the rest
_SHARED_TAGS = ("mlflow.source.git", "mlflow.user", "git.", "host", "params.", "prefect.")  # with the pipeline's run


class Session:
    """A run from its begin to `close`."""

    def __init__(self, stage: str, inputs: list[Path], resume_from: Path | None, system_metrics: bool) -> None:
        """Notes what the run is, and begins to send it."""
        self.root = Path.cwd()
        self.stage = stage
        self.uri = tracking_uri(self.root)
        self.resume_from = resume_from
        self._delivery: Sender | Delivery | None = _elsewhere(self.uri, self.root)
        self._warned: set[str] = set()
        self._retry_at = 0.0
        self._tried = threading.Event()  # once MLflow has been told of the run, or could not be
        self._stop = threading.Event()
        self._lineage = lineage(stage, inputs, self.root)
        self.spool, self._logged = self._open_spool()
        if stage_log.current:
            stage_log.current.keep_in(self.spool.folder / stage_log.LOG, stage)
        self.spool.append(self._begin())
        self._threads = [threading.Thread(target=self._keep_sending, name="mlflow", daemon=True)]
        if system_metrics:
            self._threads.append(threading.Thread(target=self._keep_sampling, name="system-metrics", daemon=True))
        for thread in self._threads:
            thread.start()
        if self._delivery is None:  # a thread that imports MLflow while the stage imports may meet half a module
            self._tried.wait()

    @property
    def run_id(self) -> str | None:
        """MLflow's id, where the run exists there."""
        self._tried.wait(LAST_SEND)
        return self.spool.state.get("run_id")

    def log_metrics(self, values: dict[str, float], step: int) -> None:
        """Notes numbers, but for those that a run gone on with had noted before it was killed."""
        if new := self._logged.new(values, step):
            self._note({"op": "metrics", "values": new, "step": step, "time": now()})

    def log_params(self, values: dict[str, str]) -> None:
        """Notes parameters."""
        self._note({"op": "params", "values": {name: scrubbed(value) for name, value in values.items()}})

    def log_file(self, path: Path) -> None:
        """Keeps a copy of a file or folder."""
        self._note({"op": "file"}, path)

    def show(self, artifact: str) -> None:
        """Notes that an artifact is to be linked where the whole pipeline is shown."""
        self._note({"op": "show", "artifact": artifact})

    def close(self, status: str) -> None:
        """Ends the run with MLflow's `status`; what cannot be sent now stays on disk.

        What a stage prints after this, its error for one, is sent when it ends.
        """
        self._stop.set()
        until = time.monotonic() + LAST_SEND
        for thread in self._threads:
            thread.join(timeout=max(0.0, until - time.monotonic()))
        self.spool.append({"op": "end", "status": status, "time": now()})
        if any(thread.is_alive() for thread in self._threads):
            add_log(self.spool)
            return  # a very slow server: the rest is sent by the next stage
        self._send()
        if status == "FINISHED":
            if self.run_id:
                experiment = self.spool.state["experiment_id"]
                remember_latest(self.stage, self.root, self._lineage.dependencies, self.run_id, experiment)
            if self.resume_from:  # there is nothing to go on with
                (self.resume_from / "mlflow_run_id").unlink(missing_ok=True)
                (self.resume_from / "mlflow_spool").unlink(missing_ok=True)
        if stage_log.current:
            stage_log.current.at_end(self._finish)
        else:
            self._finish()

    def _finish(self) -> None:
        with self._survived():
            if add_log(self.spool):
                self._send()
            let_go(self.spool)

    def _note(self, operation: Operation, file: Path | None = None) -> None:
        """Writes an operation down. A full disk costs what is to be logged, not the work."""
        try:
            kept = {"path": str(self.spool.keep_file(file))} if file else {}
            self.spool.append(operation | kept)
        except OSError as error:
            self._warn(f"what is logged cannot be kept in {self.spool.folder} ({error})")

    def _open_spool(self) -> tuple[Spool, Logged]:
        """The spool that an interrupted run left behind, where there is one, else a new one; and what it logged."""
        if self.resume_from is None:
            return Spool.create(self.root), Logged()
        self.resume_from.mkdir(parents=True, exist_ok=True)
        note, spool, logged = self.resume_from / "mlflow_spool", None, Logged()
        if note.exists():
            former = self.root / SPOOLS / note.read_text().strip()
            spool = Spool.take(former, TAKE_WAIT)
            with suppress(OSError, ValueError):  # of what is there no more; what another stage still holds can be read
                logged = Logged(operation for operation, _ in Journal(former).operations())
        spool = spool or Spool.create(self.root)
        with whole_file(note) as unfinished:
            unfinished.write_text(spool.folder.name)
        spool.save_state(resume_from=str(self.resume_from))
        return spool, logged

    def _begin(self) -> dict[str, Any]:
        pipeline = pipeline_run()
        tags = self._lineage.tags
        shared = {key: value for key, value in tags.items() if key.startswith(_SHARED_TAGS)}
        known = self.resume_from / "mlflow_run_id" if self.resume_from else None
        self.spool.save_state(stage=self.stage, pipeline_run=pipeline.key if pipeline else None)
        return {
            "op": "begin",
            "stage": self.stage,
            "experiment": _experiment(self.root),
            "time": now(),
            "tags": tags,
            "datasets": self._lineage.datasets,
            "parent": asdict(pipeline) | {"tags": shared} if pipeline else None,
            "resume": known.read_text().strip() or None if known and known.exists() else None,
        }

    def _send(self) -> bool:
        """Sends what is unsent, unless the server was silent a moment ago. Whether all was sent."""
        if time.monotonic() < self._retry_at:
            return False
        told = self._try_to_send() if answers(self.uri) else "does not answer"
        if told:
            self._retry_at = time.monotonic() + RETRY_AFTER
            self._warn(f"MLflow at {without_credentials(self.uri)} {told}; what is logged is kept and sent later")
        return not told

    def _try_to_send(self) -> str:
        """Why it could not, or nothing."""
        try:
            self._delivery = self._delivery or Delivery(self.uri, self.root)
        except Exception as error:  # there is no such address, or no such database
            return trouble(error)
        return "" if send(self._delivery, self.spool, self._warn) else self._delivery.trouble

    def _warn(self, message: str) -> None:
        """Says it once."""
        if message not in self._warned:
            self._warned.add(message)
            warn(message)

    def _keep_sending(self) -> None:
        sent = False
        try:
            with self._survived():
                sent = self._send()
        finally:
            self._tried.set()
        with self._survived():
            if sent and self._delivery:
                send_abandoned(self._delivery, self._stop)
        shown, size = time.monotonic(), 0
        while not self._stop.wait(SEND_EVERY):
            with self._survived():
                if self._send() and time.monotonic() - shown >= SHOW_LOG_EVERY and log_size(self.spool) > size:
                    shown, size = time.monotonic(), log_size(self.spool)
                    add_log(self.spool)

    @contextmanager
    def _survived(self) -> Iterator[None]:
        """A full disk, on which there may be room again later, or damage to what lies on it is said and no more."""
        try:
            yield
        except (OSError, ValueError) as error:
            self._warn(f"what is logged cannot be noted as sent ({error})")

    def _keep_sampling(self) -> None:
        self._tried.wait()
        step = first = self._logged.samples()
        while not self._stop.wait(SAMPLE_EVERY if step > first else 1.0):
            if load := self._delivery.load() if self._delivery else {}:
                self._note({"op": "metrics", "values": load, "step": step, "time": now()})
                step += 1


def _elsewhere(uri: str, root: Path) -> Sender | None:
    """The process that sends; None where this one does: it has loaded MLflow, or cannot have another one do it."""
    if "mlflow" in sys.modules:
        return None
    try:
        return Sender(uri, root)
    except OSError:
        return None


def _experiment(root: Path) -> str:
    """MLFLOW_EXPERIMENT_NAME, else tracking.experiment of params.yaml, else MLflow's own default."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    name = os.environ.get("MLFLOW_EXPERIMENT_NAME")
    try:
        return name or str(YAML(typ="safe").load((root / "params.yaml").read_text())["tracking"]["experiment"])
    except (OSError, YAMLError, KeyError, TypeError):
        return "Default"


def now() -> int:
    """Milliseconds of the Unix epoch."""
    return time.time_ns() // 1_000_000
