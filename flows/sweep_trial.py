"""One trial of a sweep: its stages in a workspace of its own, its validations watched while they come. No Prefect.

Reading the validations costs nothing: they are in the journal that the stage writes for MLflow, and in the end in the
curve.csv that it leaves.
"""

import csv
import json
import math
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from flows.devices import DevicePool
from flows.graph import Stage
from flows.run_stage import Outcome, Result, StageRunner
from flows.sweep_definition import Sweep
from flows.sweep_search import COMPLETE, FAILED, PRUNED, Search, Trial
from flows.sweep_workspace import (
    Steps,
    adopt_spools,
    bring,
    new_workspace,
    read_first_steps,
    read_steps,
    take_copy,
)
from flows.workspace import workspace
from lightning_modules.errors import Interrupted, PipelineError
from stages.dvc_lock import locked_stages
from stages.spool import SPOOLS

LOOK_SECONDS = 0.5  # between two looks at the validations
Points = list[tuple[int, float]]


@dataclass(frozen=True)
class Place:
    """Where a sweep's trials work."""

    root: Path  # the person's workspace
    copy: Path  # the project as it was when the sweep began
    trials: Path  # a folder each


@dataclass(frozen=True)
class Lent:
    """The devices of a trial."""

    environment: Mapping[str, str] = field(default_factory=dict)  # which of them its stages see
    locks: tuple[int, ...] = ()  # file descriptors: who has them has the devices


class TrialRunner:
    """Runs the trials of a sweep, several at a time, one a thread; `stop()` ends them all."""

    def __init__(
        self,
        sweep: Sweep,
        search: Search,
        place: Place,
        environment: Mapping[str, str],
        on_end: Callable[[Trial], None],
    ) -> None:
        """`environment` is added to this process's for every stage; `on_end` hears of each trial."""
        self._sweep, self._search, self._place, self._on_end = sweep, search, place, on_end
        self._steps: Steps | None = None
        self._environment = dict(environment)
        self._running: set[StageRunner] = set()
        self._dvc = threading.Lock()
        self.stopping = False

    @property
    def ready(self) -> bool:
        """Whether `prepare` has been done."""
        return self._steps is not None

    def stop(self) -> None:
        """Asks all trials to end and to save a checkpoint; no other starts. Does not wait."""
        self.stopping = True
        for runner in list(self._running):
            runner.stop()

    def kill(self) -> None:
        """Ends all trials at once."""
        self.stopping = True
        for runner in list(self._running):
            runner.kill()

    def prepare(self, on_line: Callable[[str], None], devices: DevicePool) -> None:
        """Copies the project, and runs what all trials need and DVC finds changed, on as many `devices` as it takes.

        What was done of it before an interruption is not done again. Holds the person's workspace while it copies: a
        run at work there may have other values in params.yaml. Raises PipelineError, and Interrupted where stopped.
        """
        folder, steps, done = (self._place.copy.with_name(name) for name in ("preparation", "first.json", "prepared"))
        if not done.exists():
            if not self._place.copy.is_dir():
                with workspace(self._place.root, tell=on_line):
                    read_first_steps(self._place.root, self._sweep.stage, list(self._sweep.fixed)).save(steps)
                    shutil.rmtree(folder, ignore_errors=True)
                    take_copy(self._place.root, self._place.copy, self._sweep.fixed)
            first = Steps.load(steps)
            new_workspace(self._place.copy, folder, {})
            bring(folder, first.needs)
            runner = self._runner(folder, Lent(), {})
            for stage in first.stages:
                result = _prepare(stage, runner, on_line, devices)
                if result.outcome is Outcome.STOPPED:
                    raise Interrupted(f"{stage.name}: {result.message}")
                if result.outcome not in (Outcome.RAN, Outcome.UNCHANGED):
                    raise PipelineError(f"{stage.name}: {result.message}")
            self._running.discard(runner)
            if first.stages:
                shutil.copy2(folder / "dvc.lock", self._place.copy)
            adopt_spools(folder, self._place.root)
            shutil.rmtree(folder)
            done.touch()
        self._steps = read_steps(self._place.copy, self._sweep.stage, list(self._sweep.space))

    def run(self, trial: Trial, on_line: Callable[[str], None], lent: Lent) -> Trial | None:
        """Runs a trial to its end, and tells the search; None where it was stopped: it goes on another time."""
        began = time.monotonic()
        folder = self._place.trials / str(trial.number)
        try:
            ended = self._run(trial, folder, on_line, lent)
        except Exception as error:  # one bad trial is not to end the others
            if self.stopping:
                return None
            why = str(error) if isinstance(error, PipelineError) else f"{type(error).__name__}: {error}"
            ended = replace(trial, state=FAILED, reason=" ".join(why.split()))
        if ended is None:
            return None
        ended = replace(ended, seconds=time.monotonic() - began)
        self._search.tell(ended)
        adopt_spools(folder, self._place.root)
        self._on_end(ended)
        shutil.rmtree(folder, ignore_errors=True)
        return ended

    def _run(self, trial: Trial, folder: Path, on_line: Callable[[str], None], lent: Lent) -> Trial | None:
        assert self._steps is not None, "prepare() first"
        with self._dvc:  # its own threads and caches are not made for several at once
            new_workspace(self._place.copy, folder, trial.values)
            bring(folder, self._steps.needs)
        runner = self._runner(folder, lent, {"PIPELINE_TRIAL": str(trial.number)})
        watch = _Watch(self._sweep, self._search, trial, folder, runner)
        try:
            for stage in self._steps.stages:
                if self.stopping:
                    return None
                with watch:
                    result = runner.run(stage.name, on_line, timeout_seconds=stage.timeout_seconds)
                if result.outcome is Outcome.STOPPED and watch.pruned:
                    return replace(trial, state=PRUNED, value=self._sweep.better([value for _, value in watch.points]))
                if result.outcome is Outcome.STOPPED and self.stopping:
                    return None
                if result.outcome not in (Outcome.RAN, Outcome.UNCHANGED):
                    return replace(trial, state=FAILED, reason=f"{stage.name}: {result.message}")
        finally:
            self._running.discard(runner)
        points = read_curve(folder, self._sweep)
        watch.take(points)
        return replace(trial, state=COMPLETE, value=self._sweep.better([value for _, value in points]))

    def _runner(self, folder: Path, lent: Lent, more: Mapping[str, str]) -> StageRunner:
        runner = StageRunner(folder, {**self._environment, **lent.environment, **more}, keep_open=lent.locks)
        self._running.add(runner)
        if self.stopping:  # since before it was known to `stop`
            runner.stop()
        return runner


def _prepare(stage: Stage, runner: StageRunner, on_line: Callable[[str], None], devices: DevicePool) -> Result:
    """Runs a stage that all trials need, once more where it crashed and `meta.retries` allows it."""
    for tries_left in reversed(range(1 + stage.retries)):
        with devices.lend(stage.devices, lambda: runner.stopping) as lent:
            result = runner.run(
                stage.name,
                on_line,
                timeout_seconds=stage.timeout_seconds,
                environment=devices.environment(lent or []),
                keep_open=devices.held(lent or []),
            )
        if not (result.may_retry and tries_left):
            break
    return result


class _Watch:
    """Hands the validations of a stage at work on to the search, and ends the stage where that says so."""

    def __init__(self, sweep: Sweep, search: Search, trial: Trial, folder: Path, runner: StageRunner) -> None:
        self._sweep, self._search, self._trial, self._folder, self._runner = sweep, search, trial, folder, runner
        self._seen: set[int] = set()
        self.points: Points = []
        self.pruned = False

    def __enter__(self) -> "_Watch":
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def take(self, points: Points) -> bool:
        """Reports what the search does not know yet; true where the trial is to be pruned."""
        prune = False
        for step, value in points:
            if step not in self._seen and math.isfinite(value):
                self._seen.add(step)
                self.points.append((step, value))
                prune = self._search.report(self._trial.number, step, value)
        return prune

    def _look(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            if self.take(list(read_journal(self._folder, self._sweep))):
                self.pruned = True
                self._runner.stop()
                return


def read_journal(folder: Path, sweep: Sweep) -> Iterator[tuple[int, float]]:
    """(step, value) of the validations so far, from the journal that the sweep's stage is writing in `folder`."""
    for journal in sorted((folder / SPOOLS).glob("*/journal.jsonl")):
        try:
            *lines, _unfinished = journal.read_text(encoding="utf-8").split("\n")
        except OSError:  # all was sent, and it was removed
            continue
        operations = [json.loads(line) for line in lines]
        if operations and operations[0].get("stage") == sweep.stage:
            for operation in operations:
                if operation["op"] == "metrics" and sweep.metric in operation["values"]:
                    yield operation["step"], operation["values"][sweep.metric]


def read_curve(folder: Path, sweep: Sweep) -> Points:
    """(step, value) of all validations, from the curve.csv among the outputs of the sweep's stage.

    Raises PipelineError where there is none, it does not have the metric, or a value is not finite.
    """
    outs = locked_stages(folder).get(sweep.stage, {}).get("outs", [])
    curves = [folder / out["path"] / "curve.csv" for out in outs]
    curve = next(filter(Path.is_file, curves), None)
    if curve is None:
        raise PipelineError(f"{sweep.stage} leaves no curve.csv: a sweep needs a stage that trains")
    with curve.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    points = [(int(row["step"]), float(row[sweep.metric])) for row in rows if row.get(sweep.metric)]
    if not points:
        raise PipelineError(f"{sweep.stage} has validated no {sweep.metric}")
    if not all(math.isfinite(value) for _, value in points):
        raise PipelineError(f"{sweep.metric} is not finite")
    return points
