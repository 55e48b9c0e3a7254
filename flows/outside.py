"""Stages at work that no run of the pipeline has started, but DVC, a person, the watch or a sweep.

They are known by the journal that each keeps for MLflow.
"""

import fcntl
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flows.progress import Progress, parse_progress
from stages.spool import SPOOLS
from stages.stage_log import LOG

OF_OTHER_FLOWS = ("drift", "sweep")  # what the watch measures, or a person; and a sweep as a whole
_LAST_LINES = 50  # of its log, in which the last state of a bar is looked for


@dataclass(frozen=True)
class Outside:
    """Such a stage; `began` in seconds of the Unix epoch."""

    name: str
    began: float
    progress: Progress | None


def stages_outside(root: Path) -> Iterator[Outside]:
    """The stages that run in the workspace `root`, the oldest first."""
    for folder in sorted((root / SPOOLS).glob("*-*")):
        try:
            state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            printed = folder / LOG
            lines = printed.read_text(encoding="utf-8").splitlines() if printed.exists() else []
            at_work = is_locked(folder / "lock")
        except (OSError, ValueError):  # it has ended just now
            continue
        by_flow = (state.get("pipeline_run") or "").startswith("prefect-")
        if at_work and not by_flow and "stage" in state:
            states = [progress for line in lines[-_LAST_LINES:] if (progress := parse_progress(line))]
            yield Outside(state["stage"], int(folder.name.split("-")[0]) / 1e9, states[-1] if states else None)


def is_locked(path: Path) -> bool:
    """Whether a living process holds a lock on the file."""
    with path.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False
