"""The Prefect flow of a sweep: a task a trial. Importing it imports Prefect: 2–3 s.

Stopped or killed, the same sweep goes on where it was: the trials that were at work from their checkpoints.
"""

import concurrent.futures
import contextlib
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import httpx
from prefect import flow, get_client, get_run_logger, runtime, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.exceptions import ObjectNotFound, TerminationSignal
from prefect.states import Cancelled, Completed, Failed

from flows.notify import tell_webhook
from flows.outlive import outlive_the_reader
from flows.progress import ProgressThinner, parse_progress
from flows.stopping import wait_until_stopped
from flows.sweep_results import trial_line
from flows.sweep_search import COMPLETE, PRUNED, Trial
from flows.sweep_session import Session, opened
from lightning_modules.errors import Interrupted, PipelineError

POLL_SECONDS = 3.0

shown: ContextVar[Callable[[str], None]] = ContextVar("shown", default=lambda line: None)


@task(cache_policy=NO_CACHE, persist_result=False)
def prepare(session: Session) -> State[Any]:
    """Runs once what all trials need."""
    try:
        session.prepare(_hear(get_run_logger()))
    except Interrupted as stop:
        return Cancelled(name="Stopped", message=str(stop))
    except PipelineError as error:
        return Failed(message=str(error))
    return Completed()


@task(cache_policy=NO_CACHE, persist_result=False)
def run_trial(session: Session, trial: Trial) -> State[Any]:
    """Runs one trial; the state's name tells whether it ran to its end, was pruned, failed or was stopped."""
    log = get_run_logger()
    log.info(", ".join(f"{key}: {value}" for key, value in trial.values.items()))
    ended = session.run(trial, _hear(log))
    if ended is None:
        return Cancelled(name="Stopped", message="the next run of the sweep goes on with it")
    line = trial_line(ended, session.search.best())
    if ended.state in (COMPLETE, PRUNED):
        return Completed(name="Ran" if ended.state == COMPLETE else "Pruned", message=line)
    return Failed(message=line)


@flow(name="sweep", persist_result=False, on_failure=[tell_webhook], on_crashed=[tell_webhook])
def sweep(file: str = "recipes/sweeps/pretraining.yaml") -> State[Any]:
    """Searches values of params.yaml: trials side by side, bad ones ended early, the best written down.

    Args:
        file: What to search, and for what; run again with the same file, the sweep goes on.
    """
    outlive_the_reader()
    log, show = get_run_logger(), shown.get()

    def tell(line: str) -> None:
        log.info(line)
        show(line)

    try:
        with opened(Path.cwd(), Path(file), runtime.flow_run.ui_url or "", tell) as session:
            if why := _run_all(session):
                raise Interrupted(why)
            lines, best = session.close(), session.search.best()
            _publish(session)
    except PipelineError as error:
        log.error(str(error))
        return Failed(message=str(error))
    except Interrupted as stop:
        return Cancelled(name="Stopped", message=f"{stop}: the same sweep goes on where it was")
    for line in lines:
        tell(line)
    return Completed(message=lines[0]) if best is not None else Failed(message="; ".join(lines))


def _run_all(session: Session) -> str | None:
    """Runs all trials; gives the reason if the sweep was stopped before its end. Raises PipelineError."""
    running: set[Any] = set()  # futures, each with a `wrapped_future`
    error: PipelineError | None = None
    try:
        running.add(prepare.submit(session))
        while running:
            futures = {future.wrapped_future for future in running}
            concurrent.futures.wait(futures, timeout=POLL_SECONDS, return_when=concurrent.futures.FIRST_COMPLETED)
            ended = {future for future in running if future.wrapped_future.done()}
            running -= ended
            if not session.runner.ready and ended:
                raise PipelineError(ended.pop().state.message or "what the trials need could not be made")
            while session.runner.ready and len(running) < session.side_by_side:
                if (trial := session.next()) is None:
                    break
                configured = run_trial.with_options(name="trial", task_run_name=f"trial {trial.number}")
                running.add(configured.submit(session, trial))
            if _cancelled():
                why = "cancelled"
                break
        else:
            return None
    except KeyboardInterrupt:
        why = "SIGINT"
    except TerminationSignal:
        why = "SIGTERM"
    except PipelineError as wrong:
        why, error = "", wrong
    except BaseException:
        session.runner.kill()
        raise
    session.runner.stop()
    wait_until_stopped(running, session.runner.kill)
    if error is not None:
        raise error
    return why


def _cancelled() -> bool:
    """Whether the run was cancelled in the UI or through the API.

    A server that is away for a moment says nothing, nor does one that has deleted the run.
    """
    with contextlib.suppress(httpx.HTTPError, ObjectNotFound), get_client(sync_client=True) as client:
        state = client.read_flow_run(runtime.flow_run.id).state
        return state is not None and (state.is_cancelling() or state.is_cancelled())
    return False


def _publish(session: Session) -> None:
    """A table of the trials, the best first, in the Prefect UI."""
    sign = -1 if session.sweep.maximise else 1
    ended = session.search.ended()
    ended.sort(key=lambda trial: (trial.state != COMPLETE, sign * (trial.value or 0.0)))
    create_table_artifact(
        key="trials",
        description=f"The trials of {session.name}, the best first",
        table=[
            {"trial": trial.number, "state": trial.state, session.sweep.metric: trial.value}
            | {key: str(value) for key, value in trial.values.items()}
            | {"seconds": round(trial.seconds, 1), "reason": trial.reason}
            for trial in ended
        ],
    )


def _hear(log: Any) -> Callable[[str], None]:
    """The callback for a stage's lines: into the task's log, of progress bars only a few."""
    thinner = ProgressThinner()

    def hear(line: str) -> None:
        progress = parse_progress(line)
        if progress is None or thinner.passes(progress):
            log.info(line)

    return hear
