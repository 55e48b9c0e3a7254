"""What a run of the pipeline does with each stage: whether it must run, and with which devices. Imports no Prefect."""

from typing import Any

from flows.devices import DevicePool
from flows.events import Listener
from flows.graph import Plan, Stage
from flows.progress import ProgressThinner, parse_progress
from flows.run_stage import Outcome, Result, StageRunner

_WAS = {
    Outcome.FAILED: "has failed",
    Outcome.STOPPED: "was stopped",
    Outcome.NOT_RUN: "was not run",
}


class PipelineRun:
    """What the tasks of one run share: the plan, the devices, the child processes, and how each stage has ended."""

    def __init__(self, plan: Plan, runner: StageRunner, devices: DevicePool, watcher: Listener) -> None:
        self.plan = plan
        self.runner = runner
        self.devices = devices
        self.watcher = watcher
        self.results: dict[str, Result] = {}

    def execute(self, stage: Stage, log: Any) -> Result:
        """Runs one stage, unless something it needs is missing, or neither it nor anything above it has changed."""
        for upstream in stage.upstream:
            outcome = self.results[upstream].outcome if upstream in self.results else Outcome.FAILED
            if outcome in _WAS:
                return Result(Outcome.NOT_RUN, 0.0, f"{upstream} {_WAS[outcome]}")
        if stage.name not in self.plan.stale and not any(self._touched(upstream) for upstream in stage.upstream):
            return Result(Outcome.UNCHANGED, 0.0)
        self.watcher.waiting(stage.name)
        urgency = self.plan.stages_to_come(stage.name)
        with self.devices.lend(stage.devices, lambda: self.runner.stopping, urgency) as lent:
            if lent is None or self.runner.stopping:
                return Result(Outcome.STOPPED, 0.0, "stopped before it began")
            self.watcher.started(stage.name)
            return self.runner.run(
                stage.name,
                self._hear(stage.name, log),
                timeout_seconds=stage.timeout_seconds,
                environment=self.devices.environment(lent),
                keep_open=self.devices.held(lent),
            )

    def _touched(self, stage: str) -> bool:
        result = self.results[stage]
        return result.outcome is Outcome.RAN or bool(result.message)  # run, or brought back from DVC's cache

    def _hear(self, stage: str, log: Any) -> Any:
        """The callback for a stage's lines: all of them into the task's log, of progress bars only a few."""
        thinner = ProgressThinner()

        def hear(line: str) -> None:
            if progress := parse_progress(line):
                self.watcher.progress(stage, progress)
                if thinner.passes(progress):
                    log.info(line)
            else:
                self.watcher.line(stage, line)
                log.info(line)

        return hear
