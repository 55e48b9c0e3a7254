"""Sends one run's spool to MLflow, or those that dead processes left, and says in a line what it did not take."""

import json
import threading
from collections.abc import Callable

from stages import stage_log
from stages.delivery import Delivery
from stages.outputs import whole_file
from stages.refusals import is_of_one_run
from stages.sender import Sender
from stages.spool import Operation, Spool
from stages.tracking_store import ui_url
from stages.warning import warn


def send(delivery: Delivery | Sender, spool: Spool, say: Callable[[str], None] = warn) -> bool:
    """Sends what `spool` holds, and notes where the flow and a resumed run look which run it is. False: not all of it.

    `say` is given a line on what MLflow will never take.
    Raises OSError where the disk cannot take what is noted of it, ValueError where the spool is damaged.
    """
    known = spool.state.get("run_id")
    answered = delivery.send(spool)
    if spool.state.get("run_id") != known:
        _announce(delivery, spool)
    if delivery.refused:
        more = f" (and {len(delivery.refused) - 1} more)" if len(delivery.refused) > 1 else ""
        say(f"MLflow did not take something of {spool.state.get('stage')}: {delivery.refused[0]}{more}")
        delivery.refused.clear()
    return answered


def send_abandoned(delivery: Delivery | Sender, stop: threading.Event) -> None:
    """Sends what runs of dead processes, or of a silent server, left, one after the other while the server answers."""
    for spool in Spool.abandoned(delivery.root):
        try:
            go_on = _send_abandoned(delivery, spool) or is_of_one_run(delivery.trouble)
        except (OSError, ValueError) as error:
            warn(f"what waits in {spool.folder} cannot be sent to MLflow now ({error})")
            spool.release()
            go_on = True
        if stop.is_set() or not go_on:
            return


def _send_abandoned(delivery: Delivery | Sender, spool: Spool) -> bool:
    """Sends what a run left, whose process was killed if it noted no end. Whether the server took all of it."""
    operations = [operation for operation, _ in spool.unsent()]
    taken = True
    if spool.state or operations:
        if not _ended(spool, operations):
            spool.append({"op": "end", "status": "KILLED", "time": spool.written})
            add_log(spool)
        taken = send(delivery, spool)
    let_go(spool)
    return taken


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
    if spool.unsent() or _may_go_on(spool):
        spool.release()
    else:
        spool.remove()


def _may_go_on(spool: Spool) -> bool:
    """Whether the folder that a later call would go on from names it, as it does until its run has finished."""
    resume_from = spool.state.get("resume_from")
    note = spool.root / resume_from / "mlflow_spool" if resume_from else None
    return bool(note and note.exists() and note.read_text().strip() == spool.folder.name)


def _announce(delivery: Delivery | Sender, spool: Spool) -> None:
    state = spool.state
    if _may_go_on(spool):
        with whole_file(spool.root / state["resume_from"] / "mlflow_run_id") as unfinished:
            unfinished.write_text(state["run_id"])
    if state["pipeline_run"]:
        path = delivery.root / ".pipeline" / "runs" / state["pipeline_run"] / f"{state['stage']}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        fact = {name: state[name] for name in ("stage", "run_id", "experiment_id")}
        fact["url"] = f"{ui_url(delivery.uri)}/#/experiments/{state['experiment_id']}/runs/{state['run_id']}"
        path.write_text(json.dumps(fact, indent=2) + "\n")
