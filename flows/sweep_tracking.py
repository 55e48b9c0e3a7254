"""A sweep in MLflow: one run whose children are the trials' runs and one for the sweep itself. Costs 1 to 3 s.

Everything goes through `stages.tracking`, so a server that is away costs nothing; only the runs' names are set here,
where the server answers.
"""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from flows.sweep_definition import Sweep
from flows.sweep_search import COMPLETE, Trial
from flows.workspace import STATE
from stages.tracking import StageRun, stage_run
from stages.tracking_store import prepare_store, tracking_uri

EXPERIMENT = "sweeps"  # apart from the runs of the pipeline itself


class SweepTracking:
    """What a sweep tells MLflow."""

    def __init__(self, run: StageRun, name: str, environment: dict[str, str]) -> None:
        self.environment = environment  # for the stages of the trials
        self._run, self._name = run, name

    def ended(self, trial: Trial, best: Trial | None, folder: Path) -> None:
        """A trial has ended, whose workspace is `folder`."""
        values = {} if trial.value is None else {f"value_{trial.state}": trial.value}
        if best is not None and best.value is not None:
            values["best_value"] = best.value
        self._run.log_metrics({**values, "seconds": trial.seconds}, step=trial.number)
        uri = self.environment["MLFLOW_TRACKING_URI"]
        try:
            if self._run.run_id is not None:  # the server has answered
                self._label(uri, trial, folder)
        except Exception as error:  # it does no more: never worth a trial
            why = (str(error).splitlines() or [type(error).__name__])[0][:200]
            print(f"warning: the run of trial {trial.number} keeps its stage's name: {why}", file=sys.stderr)

    def done(self, best: Trial | None, files: Sequence[Path]) -> None:
        """All trials have ended."""
        if best is not None:
            self._run.log_params({f"best.{key}": value for key, value in best.values.items()})
        for file in files:
            self._run.log_artifact(file)

    def _label(self, uri: str, trial: Trial, folder: Path) -> None:
        from mlflow import MlflowClient

        client = MlflowClient(uri)
        for note in (folder / STATE / "runs" / self.environment["PIPELINE_RUN"]).glob("*.json"):
            run = json.loads(note.read_text(encoding="utf-8"))["run_id"]
            client.update_run(run, name=f"trial {trial.number}")
            client.set_tag(run, "sweep.trial", str(trial.number))
            client.set_tag(
                run, "sweep.state", trial.state if trial.state == COMPLETE else f"{trial.state} {trial.reason}"
            )
            parent = client.get_run(run).data.tags.get("mlflow.parentRunId")
            if parent:
                client.update_run(parent, name=f"sweep {self._name}")


@contextmanager
def tracked(root: Path, name: str, key: str, flow_url: str, sweep: Sweep, folder: Path) -> Iterator[SweepTracking]:
    """The sweep's run for as long as the block lasts; interrupted, it goes on in the same one (noted in `folder`)."""
    environment = {
        "MLFLOW_TRACKING_URI": tracking_uri(root),
        "MLFLOW_EXPERIMENT_NAME": os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT),
        "PIPELINE_RUN": key,
        "PIPELINE_FLOW_URL": flow_url,
    }
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        prepare_store(environment["MLFLOW_TRACKING_URI"], root)
        params = sweep.model_dump(mode="json", exclude={"space"})
        space = {key: str(what) for key, what in sweep.model_dump(mode="json", include={"space"})["space"].items()}
        with stage_run("sweep", params={**params, "space": space}, resume_from=folder) as run:
            yield SweepTracking(run, name, environment)
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
