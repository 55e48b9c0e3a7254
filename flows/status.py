"""What is running, how far, how long yet, and what failed last and why: `make status`. Imports no Prefect; 0.1 s.

A run writes it down as it goes, in .pipeline/status.json, at most once a second between changes of state: so it can be
asked for on the machine without a server, and after a run was killed.
"""

import argparse
import fcntl
import json
import sys
import threading
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from flows.events import Listener
from flows.graph import Plan
from flows.progress import Progress
from flows.run_stage import Outcome, Result
from flows.workspace import STATE
from lightning_modules.errors import PipelineError
from stages.outputs import whole_file

FILE = STATE / "status.json"
EVERY_SECONDS = 1.0
_LAST_LINES = 5  # of a failed stage's log
Json = dict[str, Any]


class StatusWriter(Listener):
    """Writes down what it hears, and hands it on to another listener."""

    def __init__(self, root: Path, shown: Listener, url: str) -> None:
        """`url`: where the run is in the Prefect UI, or empty."""
        self._file, self._shown, self._lock, self._written = root / FILE, shown, threading.Lock(), 0.0
        failure = None
        with suppress(PipelineError):  # there was no run yet, or what it wrote is no more to be read
            failure = _read(self._file)["last_failure"]
        self._status: Json = {"began": time.time(), "ended": None, "url": url, "stages": {}, "last_failure": failure}
        self.line = shown.line  # type: ignore[method-assign]

    def planned(self, plan: Plan) -> None:
        """All stages, in their order."""
        with self._lock:
            self._status["stages"] = {name: {"state": ""} for name in plan.stages}
        self._write()
        self._shown.planned(plan)

    def waiting(self, stage: str) -> None:
        """The stage waits for devices."""
        self._set(stage, state="waiting")
        self._shown.waiting(stage)

    def started(self, stage: str) -> None:
        """The stage runs from now on."""
        self._set(stage, state="running", began=time.time())
        self._shown.started(stage)

    def progress(self, stage: str, progress: Progress) -> None:
        """How far it is."""
        with self._lock:
            self._status["stages"][stage] |= {"share": progress.share, "progress": progress.text}
        if time.monotonic() - self._written >= EVERY_SECONDS:
            self._write()
        self._shown.progress(stage, progress)

    def ended(self, stage: str, result: Result) -> None:
        """How it ended; a failure is remembered until the next one."""
        if result.outcome is Outcome.FAILED:
            tail = list(result.tail[-_LAST_LINES:])
            failure = {"stage": stage, "when": time.time(), "why": result.message, "log": tail}
            with self._lock:
                self._status["last_failure"] = failure | {"url": self._status["url"]}
        self._set(stage, state=str(result.outcome), seconds=result.seconds, message=result.message)
        self._shown.ended(stage, result)

    def stopping(self, why: str) -> None:
        """The run is being stopped."""
        with self._lock:
            self._status["stopping"] = why
        self._write()
        self._shown.stopping(why)

    def close(self) -> None:
        """The run has ended."""
        with self._lock:
            self._status["ended"] = time.time()
        self._write()

    def _set(self, stage: str, **facts: Any) -> None:
        with self._lock:
            self._status["stages"][stage] = facts
        self._write()

    def _write(self) -> None:
        with self._lock, whole_file(self._file) as file:
            file.write_text(json.dumps(self._status, indent=2) + "\n", encoding="utf-8")
            self._written = time.monotonic()


def status_text(root: Path, now: float) -> str:
    """What `make status` prints. Raises PipelineError where the file of a run cannot be read."""
    if not (root / FILE).exists():
        return "no run yet: make demo, or make serve-flows"
    status = _read(root / FILE)
    lines = [_headline(status, _held(root), now)]
    for name, stage in status["stages"].items():
        if stage["state"]:
            lines.append(f"  {name:<28} {stage['state']:<10} {_detail(stage, now)}".rstrip())
    to_come = [name for name, stage in status["stages"].items() if not stage["state"]]
    if to_come and status["ended"] is None:
        lines.append(f"  still to come: {', '.join(to_come)}")
    if failure := status["last_failure"]:
        lines.append(f"last failure: {failure['stage']}, {_clock(failure['when'])}: {failure['why']}")
        lines += [f"  | {line}" for line in failure["log"]]
        lines += [f"  its log: {failure['url']}"] if failure["url"] else []
    return "\n".join(lines)


def _headline(status: Json, held: bool, now: float) -> str:
    began, at = _clock(status["began"]), f" ({status['url']})" if status["url"] else ""
    if status["ended"] is not None:
        took = _span(status["ended"] - status["began"])
        return f"nothing is running; the last run began {began} and took {took}{at}"
    if not held:
        return f"the run of {began} was killed{at}; the next one goes on from its checkpoints"
    doing = f"being stopped ({status['stopping']})" if "stopping" in status else "running"
    return f"{doing} since {began}, for {_span(now - status['began'])}{at}"


def _detail(stage: Json, now: float) -> str:
    if stage["state"] == "running":
        parts = [_span(now - stage["began"])]
        if stage.get("share") is not None:
            parts.append(f"{stage['share']:.0%}")
        return ", ".join([*parts, *([stage["progress"]] if "progress" in stage else [])])
    return ", ".join(
        [*([_span(stage["seconds"])] if stage.get("seconds") else []), *filter(None, [stage.get("message")])]
    )


def _held(root: Path) -> bool:
    """Whether a run, or a stage that it started, holds the workspace."""
    with (root / STATE / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def _read(path: Path) -> Json:
    try:
        status: Json = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PipelineError(f"{path} cannot be read ({error}): remove it; the next run writes it anew") from error
    return status


def _clock(when: float) -> str:
    return f"{datetime.fromtimestamp(when).astimezone():%Y-%m-%d %H:%M:%S}"


def _span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def main() -> int:
    """The command line; gives the exit status."""
    argparse.ArgumentParser(
        "python -m flows.status", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    try:
        print(status_text(Path.cwd(), time.time()))
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
