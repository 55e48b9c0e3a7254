"""One open run in MLflow: its journal, the connection, and the thread that carries from the one to the other.

`stages.tracking` is what stages call; this is its engine room. Opening costs MLflow's import, 1 to 2 s.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stages.delivery import Delivery, answers, tracking_uri, ui_url
from stages.lineage import lineage, pipeline_run, remember_latest, without_credentials
from stages.spool import SPOOLS, Spool

SEND_EVERY = 2.0  # seconds between two looks into the journal
RETRY_AFTER = 15.0  # seconds that a server which did not answer is left alone
SAMPLE_EVERY = 10.0  # seconds between two samples of the machine's load
LAST_SEND = 60.0  # seconds that a stage's end may wait for a slow server to take the rest
_SHARED_TAGS = ("mlflow.source.git", "mlflow.user", "git.", "host", "params.", "prefect.")  # with the pipeline's run


class Session:
    """A run from its begin to `close`."""

    def __init__(self, stage: str, inputs: list[Path], resume_from: Path | None, system_metrics: bool) -> None:
        """Opens the run, or notes that it should be opened where the server does not answer."""
        import mlflow  # noqa: F401  here, because a thread that imports while the stage does may meet half a module

        self.root = Path.cwd()
        self.stage = stage
        self.uri = tracking_uri(self.root)
        self.resume_from = resume_from
        self._delivery: Delivery | None = None
        self._warned = False
        self._retry_at = 0.0
        self._stop = threading.Event()
        self._lineage = lineage(stage, inputs, self.root)
        self.spool = self._open_spool()
        self.spool.append(self._begin())
        self._send()
        self._threads = [threading.Thread(target=self._keep_sending, name="mlflow", daemon=True)]
        if system_metrics:
            self._threads.append(threading.Thread(target=self._keep_sampling, name="system-metrics", daemon=True))
        for thread in self._threads:
            thread.start()

    @property
    def run_id(self) -> str | None:
        """MLflow's id, once the run exists there."""
        return self.spool.state.get("run_id")

    def close(self, status: str) -> None:
        """Ends the run with MLflow's `status`; what cannot be sent now stays on disk."""
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=LAST_SEND)
        self.spool.append({"op": "end", "status": status, "time": now()})
        if any(thread.is_alive() for thread in self._threads):
            return  # a very slow server: the rest is sent by the next stage
        self._send()
        if status == "FINISHED":
            if self.run_id:
                experiment = self.spool.state["experiment_id"]
                remember_latest(self.stage, self.root, self._lineage.dependencies, self.run_id, experiment)
            if self.resume_from:  # there is nothing to go on with
                (self.resume_from / "mlflow_run_id").unlink(missing_ok=True)
                (self.resume_from / "mlflow_spool").unlink(missing_ok=True)
                self.spool.save_state(resume_from=None)
        _let_go(self.spool)

    def _open_spool(self) -> Spool:
        """The spool that an interrupted run left behind, where there is one, else a new one."""
        if self.resume_from is None:
            return Spool.create(self.root)
        self.resume_from.mkdir(parents=True, exist_ok=True)
        note = self.resume_from / "mlflow_spool"
        spool = Spool.take(self.root / SPOOLS / note.read_text().strip()) if note.exists() else None
        spool = spool or Spool.create(self.root)
        note.write_text(spool.folder.name)
        spool.save_state(resume_from=str(self.resume_from))
        return spool

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
            "resume": known.read_text().strip() if known and known.exists() else None,
        }

    def _send(self) -> None:
        """Sends what is unsent, unless the server was silent a moment ago."""
        if time.monotonic() < self._retry_at:
            return
        answered = answers(self.uri)
        if answered:
            self._delivery = self._delivery or Delivery(self.uri, self.root)
            answered = send(self._delivery, self.spool)
        if not answered:
            self._retry_at = time.monotonic() + RETRY_AFTER
            if not self._warned:
                warn(
                    f"MLflow at {without_credentials(self.uri)} does not answer; what is logged is kept and sent later"
                )
            self._warned = True

    def _keep_sending(self) -> None:
        if self._delivery and not self._retry_at:
            send_abandoned(self._delivery, self._stop)
        while not self._stop.wait(SEND_EVERY):
            self._send()

    def _keep_sampling(self) -> None:
        sample = _load_sampler()
        step = 0
        while not self._stop.wait(SAMPLE_EVERY if step else 1.0):
            self.spool.append({"op": "metrics", "values": sample(), "step": step, "time": now()})
            step += 1


def send(delivery: Delivery, spool: Spool) -> bool:
    """Sends what `spool` holds, and notes where the flow and a resumed run look which run it is. False: no answer."""
    known = spool.state.get("run_id")
    answered = delivery.send(spool)
    if spool.state.get("run_id") != known:
        _announce(delivery, spool)
    if delivery.refused:
        more = f" (and {len(delivery.refused) - 1} more)" if len(delivery.refused) > 1 else ""
        warn(f"MLflow did not take something of {spool.state.get('stage')}: {delivery.refused[0]}{more}")
        delivery.refused.clear()
    return answered


def send_abandoned(delivery: Delivery, stop: threading.Event) -> None:
    """Sends what runs of dead processes, or of a silent server, left; a run without an end was killed."""
    for spool in Spool.abandoned(delivery.root):
        operations = spool.unsent()
        if not spool.state and not operations:
            spool.remove()
            continue
        if not spool.state.get("ended") and (not operations or operations[-1][0]["op"] != "end"):
            spool.append({"op": "end", "status": "KILLED", "time": spool.written})
        answered = send(delivery, spool)
        _let_go(spool)
        if stop.is_set() or not answered:
            return


def _let_go(spool: Spool) -> None:
    """Deletes a spool of which everything was sent, leaves any other to who comes next."""
    if spool.unsent():
        spool.release()
    else:
        spool.remove()


def _announce(delivery: Delivery, spool: Spool) -> None:
    state = spool.state
    if state.get("resume_from") and Path(state["resume_from"]).is_dir():
        (Path(state["resume_from"]) / "mlflow_run_id").write_text(state["run_id"])
    if state["pipeline_run"]:
        path = delivery.root / ".pipeline" / "runs" / state["pipeline_run"] / f"{state['stage']}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        fact = {name: state[name] for name in ("stage", "run_id", "experiment_id")}
        fact["url"] = f"{ui_url(delivery.uri)}/#/experiments/{state['experiment_id']}/runs/{state['run_id']}"
        path.write_text(json.dumps(fact, indent=2) + "\n")


def _experiment(root: Path) -> str:
    """MLFLOW_EXPERIMENT_NAME, else tracking.experiment of params.yaml, else MLflow's own default."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    name = os.environ.get("MLFLOW_EXPERIMENT_NAME")
    try:
        return name or str(YAML(typ="safe").load((root / "params.yaml").read_text())["tracking"]["experiment"])
    except (OSError, YAMLError, KeyError, TypeError):
        return "Default"


def _load_sampler() -> Callable[[], dict[str, float]]:
    """A function that measures the machine (CPU, memory, disk, network, GPUs) under MLflow's own names."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    try:
        monitors.append(GPUMonitor())
    except Exception:  # no GPU, no driver, or no library for it
        monitors = monitors[:3]

    def sample() -> dict[str, float]:
        values: dict[str, float] = {}
        for monitor in monitors:
            monitor.collect_metrics()
            values |= {f"system/{name}": float(value) for name, value in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
        return values

    return sample


def now() -> int:
    """Milliseconds of the Unix epoch."""
    return time.time_ns() // 1_000_000


def warn(message: str) -> None:
    """One line on stderr."""
    print(f"warning: {message}", file=sys.stderr, flush=True)
