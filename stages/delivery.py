"""Sends what `stages.spool` holds to MLflow, once and in order, whether the server is there now or comes back later.

A request that finds nobody costs at most 4 s. Importing MLflow takes 1 to 3 s, so it happens where a `Delivery` is
made and not before: in a process of its own (`stages.sender`), or where MLflow is loaded already.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stages.machine_load import load_sampler
from stages.refusals import first_line, is_final, trouble
from stages.spool import Journal, Operation, file_lock
from stages.tracking_store import LOCK, prepare_store, store_folder

REQUEST_SECONDS = 4  # more than any answer of a healthy server takes, and what a stage may lose to a dead one
METRICS_AT_ONCE = 1000  # MLflow's own limits of a batch
PARAMS_AT_ONCE = 100
_KIND = {"mlflow.experimentKind": "custom_model_development"}  # MLflow's pages open with runs, not with chat traces


class Delivery:
    """A connection to the tracking store."""

    def __init__(self, uri: str, root: Path) -> None:
        """Raises PipelineError where the store cannot be prepared."""
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(REQUEST_SECONDS))
        prepare_store(uri, root)
        from mlflow import MlflowClient

        self.uri = uri
        self.root = root
        self._folder = store_folder(uri, root)
        self.client: Any = MlflowClient(uri)
        self.refused: list[str] = []  # what the server will never take, for a warning
        self.trouble = ""  # why it took nothing the last time
        self._sample: Callable[[], dict[str, float]] | None = None

    def send(self, spool: Journal) -> bool:
        """Sends what is unsent. False where the server takes nothing now (`trouble`): the rest stays in the spool.

        What the server refuses for good (a changed parameter, a deleted run) is left out and noted in `refused`.
        Raises OSError where the disk cannot take how far it got, ValueError where the journal is damaged.
        """
        with spool.sending():
            return self._send(spool)

    def load(self) -> dict[str, float]:
        """The machine's load since the last call, under MLflow's names."""
        self._sample = self._sample or load_sampler()
        return self._sample()

    def _send(self, spool: Journal) -> bool:
        operations, apart = spool.unsent(), 0
        while operations:
            batch = operations[:1] if apart else _batch(operations)
            try:
                self._apply(spool, [operation for operation, _ in batch])
            except Exception as error:
                if not is_final(error, begins=batch[0][0]["op"] == "begin"):
                    self.trouble = trouble(error)
                    return False
                if len(batch) > 1:
                    apart = len(batch)  # so many are sent one by one: only what is wrong is to be left out
                    continue
                self.refused.append(first_line(error))
            spool.save_state(sent=batch[-1][1])
            operations = operations[len(batch) :]
            apart = max(apart - 1, 0)
        return True

    def _apply(self, spool: Journal, operations: list[Operation]) -> None:
        """Does one operation, or several of metrics as one."""
        first = operations[0]
        if first["op"] == "begin":
            self._begin(spool, first)
            return
        run_id = spool.state.get("run_id")
        if run_id is None:
            raise ValueError("the run could not be created")
        if first["op"] == "metrics":
            self._log_metrics(run_id, operations)
        elif first["op"] == "params":
            self._log_params(run_id, first["values"])
        elif first["op"] == "file":
            path = spool.folder / first["path"]
            if not path.exists():
                raise ValueError(f"{path} is gone")
            if path.is_dir():
                self.client.log_artifacts(run_id, str(path), path.name)
            else:
                self.client.log_artifact(run_id, str(path))
        elif first["op"] == "show":
            self._show(spool, first["artifact"])
        elif first["op"] == "end":
            self._end(spool, first)

    def _begin(self, spool: Journal, operation: Operation) -> None:
        experiment = self._experiment(operation["experiment"])
        parent = self._parent(experiment, operation) if operation["parent"] else None
        tags = operation["tags"] | {"pipeline.spool": spool.folder.name}
        if parent:
            link = f"Part of [this pipeline run](#/experiments/{experiment}/runs/{parent})."
            tags["mlflow.parentRunId"] = parent
            tags["mlflow.note.content"] = f"{link}\n\n{tags.get('mlflow.note.content', '')}".rstrip()
        run_id = self._reopened(spool.state.get("run_id") or operation["resume"], tags)
        if run_id is None and spool.state.get("creating"):  # a former process may have died right after creating it
            found = self.client.search_runs([experiment], f"tags.`pipeline.spool` = '{spool.folder.name}'")
            run_id = found[0].info.run_id if found else None
        if run_id is None:
            spool.save_state(creating=True)
            name = f"trial {tags['sweep.trial']}" if "sweep.trial" in tags else operation["stage"]
            run_id = self.client.create_run(experiment, operation["time"], tags, run_name=name).info.run_id
        spool.save_state(run_id=run_id, experiment_id=experiment, parent_id=parent, ended=False)
        self._log_inputs(run_id, operation["datasets"])

    def _reopened(self, run_id: str | None, tags: dict[str, str]) -> str | None:
        """Opens an ended run again, under today's parent; None where there is no such run any more."""
        from mlflow.exceptions import MlflowException

        if run_id is None:
            return None
        try:
            former = self.client.get_run(run_id)
            self.client.update_run(run_id, status="RUNNING")
        except MlflowException as error:
            if is_final(error):
                return None
            raise
        for key, value in tags.items():
            self.client.set_tag(run_id, key, value)
        former_parent = former.data.tags.get("mlflow.parentRunId")
        if former_parent and former_parent != tags.get("mlflow.parentRunId"):
            self._settle(former.info.experiment_id, former_parent)
        return run_id

    def _experiment(self, name: str) -> str:
        with file_lock(self._folder / LOCK):
            found = self.client.get_experiment_by_name(name)
            if found is not None:
                if found.lifecycle_stage == "deleted":
                    self.client.restore_experiment(found.experiment_id)
                return str(found.experiment_id)
            artifacts = (self._folder / "mlartifacts").resolve().as_uri()
            location = artifacts if self.uri.startswith("sqlite:") else None
            return str(self.client.create_experiment(name, location, _KIND))

    def _parent(self, experiment: str, operation: Operation) -> str:
        """The run of the whole pipeline: found by its key, else created; open while any of its stages is."""
        wanted = operation["parent"]
        with file_lock(self._folder / LOCK):
            key = f"tags.`pipeline.run` = '{wanted['key']}' and tags.`pipeline.stage` = 'all'"
            found = self.client.search_runs([experiment], key)
            if found:
                self.client.update_run(found[0].info.run_id, status="RUNNING")
                return str(found[0].info.run_id)
            tags = wanted["tags"] | {"pipeline.run": wanted["key"], "pipeline.stage": "all"}
            return str(self.client.create_run(experiment, operation["time"], tags, wanted["name"]).info.run_id)

    def _log_metrics(self, run_id: str, operations: list[Operation]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, operation["time"], operation["step"])
            for operation in operations
            for name, value in operation["values"].items()
        ]
        for start in range(0, len(metrics), METRICS_AT_ONCE):
            self.client.log_batch(run_id, metrics=metrics[start : start + METRICS_AT_ONCE], synchronous=True)

    def _log_params(self, run_id: str, values: dict[str, str]) -> None:
        from mlflow.entities import Param

        params = [Param(name, value) for name, value in values.items()]
        for start in range(0, len(params), PARAMS_AT_ONCE):
            self.client.log_batch(run_id, params=params[start : start + PARAMS_AT_ONCE], synchronous=True)

    def _log_inputs(self, run_id: str, datasets: list[dict[str, str]]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        if datasets:
            tags = [InputTag("mlflow.data.context", "input")]
            self.client.log_inputs(run_id, [DatasetInput(Dataset(**dataset), tags) for dataset in datasets])

    def _show(self, spool: Journal, artifact: str) -> None:
        """Links an artifact in the description of the pipeline's run, below who started it."""
        state = spool.state
        if not state["parent_id"]:
            return
        address = self.client.get_run(state["parent_id"]).data.tags.get("prefect.url")
        lines = [f"Started by [this Prefect flow run]({address}).\n"] if address else []
        lines.append(
            f"[{artifact}](#/experiments/{state['experiment_id']}/runs/{state['run_id']}/artifacts/{artifact})"
        )
        self.client.set_tag(state["parent_id"], "mlflow.note.content", "\n".join(lines))

    def _end(self, spool: Journal, operation: Operation) -> None:
        self.client.set_terminated(spool.state["run_id"], operation["status"], operation["time"])
        if spool.state["parent_id"]:
            with file_lock(self._folder / LOCK):
                self._settle(spool.state["experiment_id"], spool.state["parent_id"])
        spool.save_state(ended=True)

    def _settle(self, experiment: str, parent: str) -> None:
        """A pipeline run is open while a stage is; then it failed where a stage's last run did, else finished."""
        children = self.client.search_runs(
            [experiment], f"tags.`mlflow.parentRunId` = '{parent}'", order_by=["start_time"]
        )
        last = {child.data.tags.get("pipeline.stage"): child.info.status for child in children}
        worst = next((s for s in ("RUNNING", "FAILED", "KILLED") if s in last.values()), "FINISHED")
        if worst != "RUNNING":
            self.client.set_terminated(parent, worst)


def _batch(operations: list[tuple[Operation, int]]) -> list[tuple[Operation, int]]:
    """The first operation; of metrics as many as follow each other and fit a request or nearly."""
    count = 1
    if operations[0][0]["op"] == "metrics":
        while count < min(len(operations), METRICS_AT_ONCE // 10) and operations[count][0]["op"] == "metrics":
            count += 1
    return operations[:count]
