"""The Prefect flow: one task for each stage of dvc.yaml, joined by the same edges. Importing it imports Prefect: 2–3 s.

DVC alone decides what has to run: Prefect caches nothing. Training happens in child processes (`flows.run_stage`).
"""

import concurrent.futures
import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from prefect import allow_failure, flow, get_client, get_run_logger, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.events.worker import EventsWorker
from prefect.exceptions import TerminationSignal
from prefect.futures import PrefectConcurrentFuture, PrefectFuture, PrefectTaskRunFuture
from prefect.logging.handlers import APILogWorker
from prefect.states import Cancelled, Completed, Failed

from flows.artifacts import publish
from flows.devices import DevicePool
from flows.events import Listener, listener
from flows.graph import Plan, Stage, read_plan
from flows.notify import tell_webhook
from flows.progress import ProgressThinner, parse_progress
from flows.run_stage import Outcome, Result, StageRunner
from flows.status import StatusWriter
from flows.workspace import workspace
from lightning_modules.errors import PipelineError

RETRY_DELAY_SECONDS = 10.0
CANCEL_POLL_SECONDS = 3.0
FLUSH_SECONDS = 10.0


class Ended(PrefectTaskRunFuture[Any]):
    """A future that a stage waits for however it ends: the stage says itself why it does not run then.

    Prefect's `allow_failure` lets failures through only; a stop is shown to it as one.
    """

    def __init__(self, future: PrefectFuture[Any]) -> None:
        super().__init__(future.task_run_id)
        self._future = future

    @property
    def state(self) -> State[Any]:
        """The state of the task run, a failure in place of a stop."""
        state = self._future.state
        return Failed(message=state.message) if state.is_cancelled() or state.is_crashed() else state

    def wait(self, timeout: float | None = None) -> None:
        """Waits for the task run to end."""
        self._future.wait(timeout)

    def result(self, timeout: float | None = None, raise_on_failure: bool = True) -> Any:
        """The task run's result."""
        return self._future.result(timeout, raise_on_failure)

    def add_done_callback(self, fn: Callable[[PrefectFuture[Any]], None]) -> None:
        """Calls `fn` when the task run has ended."""
        self._future.add_done_callback(fn)


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
            environment = self.devices.environment(lent)
            hear = self._hear(stage.name, log)
            return self.runner.run(stage.name, hear, timeout_seconds=stage.timeout_seconds, environment=environment)

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


_WAS = {
    Outcome.FAILED: "has failed",
    Outcome.STOPPED: "was stopped",
    Outcome.NOT_RUN: "was not run",
}


@task(cache_policy=NO_CACHE, persist_result=False, retry_delay_seconds=RETRY_DELAY_SECONDS)
def run_stage(stage: Stage, run: PipelineRun) -> State[Any]:
    """Runs one stage of dvc.yaml; the state's name tells whether it ran, was unchanged, failed or was stopped."""
    log = get_run_logger()
    result = run.results[stage.name] = run.execute(stage, log)
    run.watcher.ended(stage.name, result)
    took = f"{result.message} ({result.seconds:.1f} s)" if result.message else f"{result.seconds:.1f} s"
    match result.outcome:
        case Outcome.RAN:
            return Completed(name="Ran", message=took)
        case Outcome.UNCHANGED:
            return Completed(name="Unchanged", message=result.message or "nothing it depends on has changed")
        case Outcome.FAILED:
            log.error(result.message)
            return Failed(message=took)
        case Outcome.STOPPED:
            return Cancelled(name="Stopped", message=took)
        case Outcome.NOT_RUN:
            log.warning("not run: %s", result.message)
            return Cancelled(name="NotRun", message=f"not run: {result.message}")


def flush() -> None:
    """Sends the logs and states that Prefect still holds back: to be called before its server is stopped."""
    APILogWorker.drain_all(timeout=FLUSH_SECONDS)
    EventsWorker.drain_all(timeout=FLUSH_SECONDS)


@flow(name="pipeline", persist_result=False, on_failure=[tell_webhook], on_crashed=[tell_webhook])
def pipeline(targets: list[str] | None = None, overrides: dict[str, Any] | None = None) -> State[Any]:
    """From raw text to evaluated, registered models: every stage of dvc.yaml that DVC finds changed.

    Args:
        targets: Only these stages and what they need; `finetune` means all of `finetune@…`. Empty: every stage.
        overrides: Other values for keys of params.yaml, for this run only, e.g. {"pretrain.learning_rate": 0.001}.
    """
    log = get_run_logger()
    root = Path.cwd()
    key = f"prefect-{runtime.flow_run.id}"
    environment = {"PIPELINE_RUN": key, "PIPELINE_FLOW_URL": runtime.flow_run.ui_url or ""}
    try:
        with workspace(root, overrides, on_wait=log.warning) as lock:
            runner = StageRunner(root, environment, keep_open=(lock,))
            watcher = StatusWriter(root, listener.get(), runtime.flow_run.ui_url or "")
            try:
                run = PipelineRun(read_plan(root, targets), runner, DevicePool.of_this_machine(), watcher)
                run.watcher.planned(run.plan)
                stopped = _run_all(run)
            finally:
                watcher.close()
    except PipelineError as error:
        log.error(str(error))
        return Failed(message=str(error))
    publish(root, key, run.plan, run.results, targets)
    return _final_state(run, stopped)


def _run_all(run: PipelineRun) -> str | None:
    """Submits every stage and waits for all; gives the reason if the run was stopped before its end."""
    futures: dict[str, PrefectConcurrentFuture[Any]] = {}
    try:
        for stage in run.plan.stages.values():
            configured = run_stage.with_options(
                name=stage.name,
                task_run_name=stage.name,
                description=stage.description,
                retries=stage.retries,
                retry_condition_fn=_retry_condition(stage.name, run),
            )
            upstream = [allow_failure(Ended(futures[name])) for name in stage.upstream]
            futures[stage.name] = configured.submit(stage, run, wait_for=upstream)  # type: ignore[call-overload]
        cancelled = _wait(futures)
        if not cancelled:
            return None
        why = "cancelled"
    except KeyboardInterrupt:
        why = "SIGINT"
    except TerminationSignal:
        why = "SIGTERM"
    except BaseException:
        run.runner.kill()
        raise
    run.runner.stop()
    run.watcher.stopping(why)
    try:
        concurrent.futures.wait([future.wrapped_future for future in futures.values()])
    except BaseException:  # asked a second time: no more grace
        run.runner.kill()
        raise
    return why


def _retry_condition(stage: str, run: PipelineRun) -> Callable[[Any, TaskRun, State[Any]], bool]:
    def may_retry(_task: Any, _task_run: TaskRun, _state: State[Any]) -> bool:
        return run.results[stage].may_retry and not run.runner.stopping

    return may_retry  # Prefect takes a plain function only


def _wait(futures: dict[str, PrefectConcurrentFuture[Any]]) -> bool:
    """Waits until all stages have ended; true as soon as the run was cancelled in the UI or through the API."""
    pending = {future.wrapped_future for future in futures.values()}
    asked = time.monotonic()
    with get_client(sync_client=True) as client:
        while pending:
            _, pending = concurrent.futures.wait(pending, timeout=CANCEL_POLL_SECONDS)
            if pending and time.monotonic() - asked >= CANCEL_POLL_SECONDS:
                asked = time.monotonic()
                with contextlib.suppress(
                    httpx.HTTPError
                ):  # a server that is away for a moment does not end the training
                    state = client.read_flow_run(runtime.flow_run.id).state
                    if state is not None and (state.is_cancelling() or state.is_cancelled()):
                        return True
    return False


def _final_state(run: PipelineRun, stopped: str | None) -> State[Any]:
    if stopped:
        return Cancelled(name="Stopped", message=f"{stopped}: the next run goes on from the last checkpoints")
    failed = [f"{name}: {result.message}" for name, result in run.results.items() if result.outcome is Outcome.FAILED]
    if failed:
        return Failed(message="; ".join(failed))
    outcomes = [result.outcome for result in run.results.values()]
    if Outcome.STOPPED in outcomes:
        return Cancelled(name="Stopped", message="a stage was stopped: the next run goes on from its checkpoint")
    ran = outcomes.count(Outcome.RAN)
    return Completed(name="Ran" if ran else "Unchanged", message=f"{ran} ran, {len(outcomes) - ran} unchanged")
