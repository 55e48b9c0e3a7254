"""The Prefect flow: one task for each stage of dvc.yaml, joined by the same edges. Importing it imports Prefect: 2–3 s.

DVC alone decides what has to run: Prefect caches nothing. Training happens in child processes (`flows.run_stage`).
"""

import concurrent.futures
import contextlib
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from prefect import allow_failure, flow, get_client, get_run_logger, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import State, TaskRun
from prefect.events.worker import EventsWorker
from prefect.exceptions import ObjectNotFound, TerminationSignal
from prefect.futures import PrefectConcurrentFuture, PrefectFuture, PrefectTaskRunFuture
from prefect.logging.handlers import APILogWorker
from prefect.states import Cancelled, Completed, Crashed, Failed

from flows.artifacts import publish
from flows.devices import DevicePool
from flows.events import listener
from flows.graph import Stage, read_plan
from flows.notify import tell_webhook
from flows.outlive import outlive_the_reader
from flows.pipeline_run import PipelineRun
from flows.run_stage import Outcome, StageRunner
from flows.status import StatusWriter
from flows.stopping import wait_until_stopped
from flows.workspace import STATE, WorkspaceHeld, workspace
from lightning_modules.errors import PipelineError
from stages.params import require_ready

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
        targets: Only these stages of dvc.yaml and what they need, e.g. ["pretrain"] or ["evaluate@translation"];
            `finetune` means all of `finetune@…`. Empty: every stage.
        overrides: Other values for keys of params.yaml, for this run only, e.g. {"pretrain.learning_rate": 0.001}.
    """
    outlive_the_reader()
    log = get_run_logger()
    root = Path.cwd()
    key = f"prefect-{runtime.flow_run.id}"
    environment = {"PIPELINE_RUN": key, "PIPELINE_FLOW_URL": runtime.flow_run.ui_url or ""}
    try:
        with workspace(root, overrides, tell=log.warning) as lock:
            _mark_killed_run(root)
            runner = StageRunner(root, environment, keep_open=(lock,))
            watcher = StatusWriter(root, listener.get(), runtime.flow_run.ui_url or "")
            try:
                plan = read_plan(root, targets)
                require_ready(root / "params.yaml", plan.stages)
                run = PipelineRun(plan, runner, DevicePool.of_this_machine(), watcher)
                run.watcher.planned(run.plan)
                stopped = _run_all(run)
            finally:
                watcher.close()
            publish(root, key, run.plan, run.results, targets)  # before the next run writes other reports
    except WorkspaceHeld as error:
        return Cancelled(name="Skipped", message=str(error))
    except PipelineError as error:
        log.error(str(error))
        return Failed(message=str(error))
    return _final_state(run, stopped)


def _mark_killed_run(root: Path) -> None:
    """If the run that had the workspace before was killed, with nobody left to say so, its state says so from now on.

    To be called by the run that holds the workspace: no other can be at work there.
    """
    file = root / STATE / "flow_run"
    with (
        get_client(sync_client=True) as client,
        contextlib.suppress(OSError, ValueError, ObjectNotFound, httpx.HTTPError),
    ):
        before = client.read_flow_run(uuid.UUID(file.read_text(encoding="utf-8")))
        retried = str(before.id) == runtime.flow_run.id  # it is this one
        if not retried and before.state is not None and before.state.is_running():
            client.set_flow_run_state(before.id, Crashed(message="killed: its processes ended without a word"))
    file.write_text(str(runtime.flow_run.id), encoding="utf-8")


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
        if not _wait(futures):
            return None
        why = _stop(run, "cancelled")
    except KeyboardInterrupt:
        why = _stop(run, "SIGINT")
    except TerminationSignal:  # from whoever stops this process, or from the worker when the run is cancelled
        run.runner.stop()  # first: who ended the stages as well does not want them to be tried again
        why = _stop(run, _why_terminated())
    except BaseException:
        run.runner.kill()
        raise
    wait_until_stopped(futures.values(), run.runner.kill)
    return why


def _why_terminated() -> str:
    """Why this process got SIGTERM. Another one meanwhile changes nothing."""
    with contextlib.suppress(TerminationSignal), get_client(sync_client=True) as client:
        if cancelled(client):
            return "cancelled"
    return "SIGTERM"


def _stop(run: PipelineRun, why: str) -> str:
    """Asks all stages to end."""
    run.runner.stop()
    run.watcher.stopping(why)
    return why


def _retry_condition(stage: str, run: PipelineRun) -> Callable[[Any, TaskRun, State[Any]], bool]:
    def may_retry(_task: Any, _task_run: TaskRun, _state: State[Any]) -> bool:
        return stage in run.results and run.results[stage].may_retry and not run.runner.stopping

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
                if cancelled(client):
                    return True
    return False


def cancelled(client: SyncPrefectClient) -> bool:
    """Whether the server knows this run, or the one that it is a part of, as cancelled.

    A server that is away for a moment does not end the training, nor does one that has deleted the run.
    """
    with contextlib.suppress(httpx.HTTPError, ObjectNotFound):
        states = [client.read_flow_run(run).state for run in {runtime.flow_run.id, runtime.flow_run.root_flow_run_id}]
        return any(state is not None and (state.is_cancelling() or state.is_cancelled()) for state in states)
    return False


def _final_state(run: PipelineRun, stopped: str | None) -> State[Any]:
    if stopped:
        return Cancelled(name="Stopped", message=f"{stopped}: the next run goes on from the last checkpoints")
    failed = [f"{name}: {result.message}" for name, result in run.results.items() if result.outcome is Outcome.FAILED]
    failed += [
        f"{name}: its task ended before it did, see its log" for name in run.plan.stages if name not in run.results
    ]
    if failed:
        return Failed(message="; ".join(failed))
    outcomes = [result.outcome for result in run.results.values()]
    ran = outcomes.count(Outcome.RAN)
    return Completed(name="Ran" if ran else "Unchanged", message=f"{ran} ran, {len(outcomes) - ran} unchanged")
