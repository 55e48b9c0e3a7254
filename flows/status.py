"""What is running, how far, how long yet, and what failed last and why: `make status`. Imports no Prefect; 0.1 s.

A run writes it down as it goes, in .pipeline/status.json, at most once a second between changes of state: so it can be
asked for on the machine without a server, and after a run was killed. Stages that `dvc repro` runs outside a flow are
known by the journal that they keep for MLflow. Where PREFECT_API_URL names a server, that is asked for runs that wait.
"""

import argparse
import json
import os
import sys
import threading
import time
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from flows.devices import visible_gpus
from flows.events import Listener
from flows.graph import Plan
from flows.late_runs import late_runs
from flows.outside import OF_OTHER_FLOWS, Outside, is_locked, stages_outside
from flows.progress import Progress
from flows.reader import tell
from flows.run_stage import Outcome, Result
from flows.time_left import Job, bar_left, time_left
from flows.workspace import STATE
from lightning_modules.errors import PipelineError
from stages.outputs import whole_file
from stages.parallel import cores

FILE = STATE / "status.json"
EVERY_SECONDS = 1.0
_LAST_LINES = 5  # of a failed stage's log
Json = dict[str, Any]


class StatusWriter(Listener):
    """Writes down what it hears, and hands it on to another listener."""

    def __init__(self, root: Path, shown: Listener, url: str) -> None:
        """`url`: where the run is in the Prefect UI, or empty."""
        self._file, self._shown, self._lock, self._written = root / FILE, shown, threading.Lock(), 0.0
        former: Json = {}
        with suppress(PipelineError):  # there was no run yet, or what it wrote is no more to be read
            former = _read(self._file)
        self._status: Json = {"began": time.time(), "ended": None, "url": url, "stages": {}, "plan": {}}
        self._status |= {"last_failure": former.get("last_failure"), "took": former.get("took", {})}
        self.line = shown.line  # type: ignore[method-assign]

    def planned(self, plan: Plan) -> None:
        """All stages, in their order."""
        with self._lock:
            self._status["stages"] = {name: {"state": ""} for name in plan.stages}
            self._status["plan"] = {
                name: {"upstream": stage.upstream, "devices": stage.devices, "stale": name in plan.stale}
                for name, stage in plan.stages.items()
            }
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
        if result.outcome is Outcome.RAN:
            with self._lock:
                self._status["took"][stage] = result.seconds
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
    outside, late = list(map(partial(_told, now=now), stages_outside(root))), _late()
    if not (root / FILE).exists():
        return "\n".join([*(outside or ["no run yet: make demo, or make serve-flows"]), *late])
    status = _read(root / FILE)
    held = _held(root)
    lines = [_headline(status, held, bool(outside), now), *outside]
    for name, stage in status["stages"].items():
        if stage["state"]:
            lines.append(f"  {name:<28} {stage['state']:<10} {_detail(stage, now)}".rstrip())
    to_come = [name for name, stage in status["stages"].items() if not stage["state"]]
    if to_come and status["ended"] is None:
        lines.append(f"  still to come: {', '.join(to_come)}")
    if held and status["ended"] is None and (left := _left(status, now)):
        lines.append(f"  {left}")
    if failure := status["last_failure"]:
        lines.append(f"last failure: {failure['stage']}, {_clock(failure['when'])}: {failure['why']}")
        lines += [f"  | {line}" for line in failure["log"]]
        lines += [f"  its log: {failure['url']}"] if failure["url"] else []
    return "\n".join([*lines, *late])


def _told(stage: Outside, now: float) -> str:
    far = stage.progress
    text = f", {far.share:.0%}, {far.text}" if far and far.share is not None else ""
    where = "" if stage.name in OF_OTHER_FLOWS else " outside a flow"
    return f"{stage.name} is running{where}, for {_span(now - stage.began)}{text}"


def _left(status: Json, now: float) -> str:
    """How long the whole run takes yet, by what each stage took the last time; empty where none is known."""
    plan, stages, took = status.get("plan", {}), status["stages"], status.get("took", {})
    jobs: dict[str, Job] = {}
    unknown = []
    touched = {name for name, stage in stages.items() if stage["state"] in ("ran", "running", "waiting")}
    for name, about in plan.items():  # upstream first
        state = stages[name]["state"]
        if state not in ("", "running", "waiting"):
            continue
        if not (about["stale"] or touched & {name, *about["upstream"]}):
            continue
        touched.add(name)
        running = state == "running"
        by_bar = bar_left(stages[name].get("progress", "")) if running else None
        spent = now - stages[name]["began"] if running else 0.0
        by_the_last = took.get(name, 0.0) - spent
        if by_bar is None and by_the_last <= 0:  # never seen, or longer at work than the last time
            unknown.append(name)
        seconds = max(by_the_last, by_bar or 0.0)
        jobs[name] = Job(seconds, about["devices"], tuple(about["upstream"]), running)
    if not jobs or len(unknown) == len(jobs):
        return ""
    more = f", and what {', '.join(unknown)} will take" if unknown else ""
    return f"about {_span(time_left(jobs, len(visible_gpus()) or cores()))} to go, as it took the last time{more}"


def _late() -> list[str]:
    """Flow runs that nobody begins, where a Prefect server is named."""
    api = os.environ.get("PREFECT_API_URL")
    try:
        return late_runs(api) if api else []
    except PipelineError as error:
        return [str(error)]


def _headline(status: Json, held: bool, outside: bool, now: float) -> str:
    began, at = _clock(status["began"]), f" ({status['url']})" if status["url"] else ""
    if status["ended"] is not None:
        took = _span(status["ended"] - status["began"])
        idle = "" if held or outside else "nothing is running; "
        return f"{idle}the last run began {began} and took {took}{at}"
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
    return is_locked(root / STATE / "lock")


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
        tell(status_text(Path.cwd(), time.time()))
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
