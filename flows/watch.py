"""The flow that looks for new data: nothing has changed, or the models in use are measured on it, then it is learnt.

Where a source has changed, in this order: what is known is kept; the data is fetched, prepared and checked for leakage;
the pre-trained model and the champions are measured on it (stages/drift.py); the rest of the pipeline runs. What fails
or is stopped is taken up by the next look where it ended. Importing it imports Prefect; a look that finds nothing new
takes a second or two.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from prefect import flow, get_client, get_run_logger, runtime, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Completed, Failed

from flows.changes import look_at_sources
from flows.notify import tell_webhook
from flows.outlive import outlive_the_reader
from flows.pipeline import CANCEL_POLL_SECONDS, cancelled, pipeline
from flows.process_tree import ProcessTree
from flows.progress import ProgressThinner, parse_progress
from flows.run_stage import StageLog, child_environment, read_output
from flows.workspace import STATE, WorkspaceHeld, workspace
from lightning_modules.errors import Interrupted, PipelineError
from stages.drift_report import REPORT, findings, read_looks, table
from stages.outputs import whole_file

PENDING = STATE / "drift" / "pending.json"
PREPARED = Path("data/prepared")
UNTIL = "leakage"  # the stage up to which new data goes before the models are measured on it


@flow(name="watch", persist_result=False, on_failure=[tell_webhook], on_crashed=[tell_webhook])
def watch(train: bool = True, overrides: dict[str, Any] | None = None) -> State[Any]:
    """Looks whether a source has changed; measures the models in use on the new data, then learns from it.

    Args:
        train: Whether to go on to the training. If not, the models in use are measured in any case.
        overrides: Other values for keys of params.yaml, for this run only, e.g. {"evaluate.max_records": 100}.
    """
    outlive_the_reader()
    log = get_run_logger()
    root = Path.cwd()
    try:
        found = look_at_sources(root, overrides or {}, time.time())
        for remark in found.remarks:
            log.warning(remark)
        if found.unfinished:
            what = f"{found.unfinished[0].name} (of {len(found.unfinished)} such files) may still be written to"
            return Completed(name="Unfinished", message=f"{what}: left to the next look")
        pending = _read_pending(root)
        if train and not found.stages and pending is None:
            return Completed(name="Unchanged", message="no source has changed")
        return _take_in(root, found.stages, pending, train, {**(overrides or {}), **found.revisions})
    except WorkspaceHeld as error:
        return Cancelled(name="Skipped", message=str(error))
    except Interrupted as stop:
        return Cancelled(name="Stopped", message=f"{stop}: the next look takes it up")
    except PipelineError as error:
        log.error(str(error))
        return Failed(message=str(error))


def _take_in(
    root: Path, changed: tuple[str, ...], pending: dict[str, bool] | None, train: bool, overrides: dict[str, Any]
) -> State[Any]:
    """What follows once something is new; each part of it notes in PENDING that it is done."""
    log = get_run_logger()
    if changed:
        log.info("changed: %s", ", ".join(changed))
        if pending is None and (root / PREPARED).is_dir():
            _drift(root, overrides, "--remember")
        pending = {"measured": False}
        _write_pending(root, pending)
    if pending is not None and not pending["measured"]:
        prepared = pipeline(targets=[UNTIL], overrides=overrides, return_state=True)
        if not prepared.is_completed():
            return _same(prepared)
    if pending is None or not pending["measured"] or not train:
        measure(root, overrides)
    if pending is not None:
        _write_pending(root, {"measured": True})
    if not train:
        return Completed(name="Measured", message=f"see {REPORT} and the artifact drift")
    learnt = pipeline(overrides=overrides, return_state=True)
    if learnt.is_completed():
        (root / PENDING).unlink(missing_ok=True)
    return _same(learnt)


@task(name="drift", task_run_name="drift", cache_policy=NO_CACHE, persist_result=False)
def measure(root: Path, overrides: dict[str, Any]) -> None:
    """Measures the models in use on the new data; what was found is an artifact of the run.

    Raises PipelineError where the data cannot be read, and Interrupted where the run was cancelled.
    """
    _drift(root, overrides)
    look = read_looks(root / REPORT)[-1]
    for line in findings(look):
        get_run_logger().warning(line)
    text = "\n".join([table(look), "", *(f"- {line}" for line in findings(look))])
    create_markdown_artifact(key="drift", description="The models in use on new and on known texts", markdown=text)


def _drift(root: Path, overrides: dict[str, Any], *arguments: str) -> None:
    """Runs stages.drift in a process of its own, its output in the log of the run, and asks whether that is cancelled.

    Raises PipelineError if it fails, and Interrupted where the run was cancelled.
    """
    log, thinner = get_run_logger(), ProgressThinner()
    environment = child_environment({"PIPELINE_FLOW_URL": runtime.flow_run.ui_url or ""})
    command = [sys.executable, "-m", "stages.drift", *arguments]

    def hear(line: str) -> None:
        progress = parse_progress(line)
        if progress is None or thinner.passes(progress):
            log.info(line)

    with workspace(root, overrides, tell=log.warning) as lock, get_client(sync_client=True) as client:
        tree = ProcessTree(command, root, environment, (lock,))
        output, asked = StageLog("drift", hear), time.monotonic()
        try:
            while True:
                ended = tree.leader.poll() is not None
                if not read_output(tree, output) and ended:
                    break
                if time.monotonic() - asked >= CANCEL_POLL_SECONDS:
                    asked = time.monotonic()
                    if cancelled(client):
                        raise Interrupted("cancelled")
            output.close()
        finally:
            tree.kill()  # also when the run is stopped
            status = tree.leader.wait()
    if status:
        raise PipelineError(f"stages.drift: {output.result(status, asked_to_stop=False).message}")


def _same(state: State[Any]) -> State[Any]:
    """The state that the pipeline's run ended in, for this one."""
    return State(type=state.type, name=state.name, message=state.message)


def _read_pending(root: Path) -> dict[str, bool] | None:
    """What an earlier look began and did not end: whether the models were measured. None: nothing is left to do."""
    if not (root / PENDING).is_file():
        return None
    try:
        return {"measured": bool(json.loads((root / PENDING).read_text(encoding="utf-8"))["measured"])}
    except (ValueError, KeyError, TypeError) as error:
        raise PipelineError(f"{PENDING} cannot be read ({error!r}): remove it") from error


def _write_pending(root: Path, pending: dict[str, bool]) -> None:
    with whole_file(root / PENDING) as file:
        file.write_text(json.dumps(pending) + "\n", encoding="utf-8")
