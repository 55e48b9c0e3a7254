"""Tells MLflow what a stage does, and never stands in its way.

    with stage_run("prepare", params=params.prepare.model_dump(), inputs=[Path("data/raw")]) as run:
        run.log_metrics({"records": 1000})

Opening a run costs about a second (DVC's hashes of what it reads), logging some 30 µs: values go to a journal on disk
(`stages.spool`), and every other second a thread has them sent by a process that all stages share (`stages.sender`).
When the server is away, a line says so, the stage goes on, and the next stage, or `python -m stages.tracking`, sends
what was kept: in order and once.
"""

import argparse
import json
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning_modules.errors import Interrupted, PipelineError
from stages.console import run_stage, stage_parser
from stages.delivery import Delivery
from stages.lineage import without_credentials
from stages.ranks import is_main_process
from stages.refusals import trouble
from stages.scrub import scrubbed
from stages.sending import send_abandoned
from stages.session import Session
from stages.spool import SPOOLS, Spool
from stages.tracking_store import answers, tracking_uri
from stages.warning import warn


class StageRun:
    """What a stage logs to. Without a session (a DDP process other than the first) every call does nothing."""

    def __init__(self, session: Session | None = None) -> None:
        self._session = session

    @property
    def run_id(self) -> str | None:
        """MLflow's id; None as long as the server has not answered."""
        return self._session.run_id if self._session else None

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Numbers (or tensors of one) at a step."""
        if self._session:
            self._session.log_metrics({name: float(value) for name, value in metrics.items()}, int(step))

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Parameters, nested ones under dotted names."""
        if self._session:
            self._session.log_params(flat(params))

    def log_artifact(self, path: Path) -> None:
        """A copy of a file or folder as it is now; meant for small ones."""
        if self._session:
            self._session.log_file(path)

    def show_with_pipeline(self, artifact: str) -> None:
        """Links an artifact of this run in the description of the whole pipeline's run."""
        if self._session:
            self._session.show(artifact)

    def log_text(self, text: str, name: str) -> None:
        """A text, as a file called `name`."""
        if self._session:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / name
                path.write_text(scrubbed(text), encoding="utf-8")
                self.log_artifact(path)


@contextmanager
def stage_run(
    stage: str,
    *,
    params: Mapping[str, Any] | None = None,
    inputs: Sequence[Path] = (),
    resume_from: Path | None = None,
    system_metrics: bool = False,
) -> Iterator[StageRun]:
    """A run in MLflow for as long as the block lasts: FINISHED, FAILED after an error, KILLED when interrupted.

    `stage` is its DVC name (`finetune@translation`), `inputs` are files it reads besides its DVC dependencies.
    With `resume_from`, a folder that outlives a crash, a later call goes on in the same run until one finishes.
    `system_metrics` samples the machine's load. Nothing in here raises, except what the block itself raises.
    """
    session = _open(stage, list(inputs), resume_from, system_metrics)
    run = StageRun(session)
    run.log_params(params or {})
    status = "FAILED"
    try:
        yield run
        status = "FINISHED"
    except (Interrupted, KeyboardInterrupt):
        status = "KILLED"
        raise
    finally:
        if session:
            _close(session, status)


def _open(stage: str, inputs: list[Path], resume_from: Path | None, system_metrics: bool) -> Session | None:
    if not is_main_process():
        return None
    try:
        return Session(stage, inputs, resume_from, system_metrics)
    except Exception as error:  # tracking must never cost the work
        warn(f"this run is not tracked: {_one_line(error)}")
        return None


def _close(session: Session, status: str) -> None:
    try:
        session.close(status)
    except Exception as error:  # as above
        warn(f"the end of this run is not tracked: {_one_line(error)}")


def flush(root: Path | None = None) -> int:
    """Sends what earlier runs kept. Returns the number of runs that still wait, and says why."""
    root = root or Path.cwd()
    uri = tracking_uri(root)
    if any((root / SPOOLS).glob("*-*")) and answers(uri):
        try:
            delivery = Delivery(uri, root)
        except Exception as error:
            raise PipelineError(f"MLflow at {without_credentials(uri)} {trouble(error)}") from error
        send_abandoned(delivery, threading.Event())
        if delivery.trouble:
            warn(f"MLflow at {without_credentials(uri)} {delivery.trouble}")
    return Spool.waiting(root)


def flat(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested parameters as `section.key: text`; lists as JSON."""
    values: dict[str, str] = {}
    for key, value in params.items():
        if isinstance(value, Mapping):
            values |= flat(value, f"{prefix}{key}.")
        else:
            values[f"{prefix}{key}"] = json.dumps(value, default=str) if isinstance(value, list) else str(value)
    return values


def _one_line(error: Exception) -> str:
    return scrubbed((str(error).splitlines() or [type(error).__name__])[0])[:300]


def main(_: argparse.Namespace) -> None:
    """Sends what earlier runs kept, and says what is left."""
    waiting = flush()
    if waiting:
        raise PipelineError(f"MLflow takes nothing now: {waiting} runs wait in {SPOOLS}; mend it and try again")
    print("nothing waits to be sent to MLflow")


if __name__ == "__main__":
    run_stage(main, stage_parser(__doc__))
