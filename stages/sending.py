"""Sends one run's spool to MLflow, or those that dead processes left, and says in a line what it did not take."""

import json
import sys
import threading
from pathlib import Path

from stages import stage_log
from stages.delivery import Delivery
from stages.scrub import scrubbed
from stages.sender import Sender
from stages.spool import Operation, Spool
from stages.tracking_store import ui_url


def send(delivery: Delivery | Sender, spool: Spool) -> bool:
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


def send_abandoned(delivery: Delivery | Sender, stop: threading.Event) -> None:
    """Sends what runs of dead processes, or of a silent server, left; a run without an end was killed."""
    for spool in Spool.abandoned(delivery.root):
        operations = [operation for operation, _ in spool.unsent()]
        answered = True
        if spool.state or operations:
            if not _ended(spool, operations):
                spool.append({"op": "end", "status": "KILLED", "time": spool.written})
                add_log(spool)
            answered = send(delivery, spool)
        let_go(spool)
        if stop.is_set() or not answered:
            return


def _ended(spool: Spool, unsent: list[Operation]) -> bool:
    """Whether the last thing a run's process noted of it, before the log, is its end."""
    turns = [operation["op"] for operation in unsent if operation["op"] in ("begin", "end")]
    return turns[-1] == "end" if turns else bool(spool.state.get("ended"))


def add_log(spool: Spool) -> bool:
    """Has the log sent, as it is when it is sent; False where there is none."""
    if log_size(spool):
        spool.append({"op": "file", "path": stage_log.LOG})
    return bool(log_size(spool))


def log_size(spool: Spool) -> int:
    """Bytes of the log; 0 where there is none."""
    path = spool.folder / stage_log.LOG
    return path.stat().st_size if path.exists() else 0


def let_go(spool: Spool) -> None:
    """Deletes a spool of which everything was sent, unless its run may be gone on with; leaves it to who comes next."""
    resume_from = spool.state.get("resume_from")
    note = spool.root / resume_from / "mlflow_spool" if resume_from else None
    if spool.unsent() or (note and note.exists() and note.read_text().strip() == spool.folder.name):
        spool.release()
    else:
        spool.remove()


def _announce(delivery: Delivery | Sender, spool: Spool) -> None:
    state = spool.state
    if state.get("resume_from") and Path(state["resume_from"]).is_dir():
        (Path(state["resume_from"]) / "mlflow_run_id").write_text(state["run_id"])
    if state["pipeline_run"]:
        path = delivery.root / ".pipeline" / "runs" / state["pipeline_run"] / f"{state['stage']}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        fact = {name: state[name] for name in ("stage", "run_id", "experiment_id")}
        fact["url"] = f"{ui_url(delivery.uri)}/#/experiments/{state['experiment_id']}/runs/{state['run_id']}"
        path.write_text(json.dumps(fact, indent=2) + "\n")


def warn(message: str) -> None:
    """One line on stderr."""
    print(f"warning: {scrubbed(message)}", file=sys.stderr, flush=True)
