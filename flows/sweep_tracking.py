"""A sweep in MLflow: one run whose children are the trials' runs and one for the sweep itself. Costs 1 to 3 s.

Everything goes through `stages.tracking`, so a server that is away costs nothing; only how a trial ended is set here,
where the server answers.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from flows.sweep_definition import Sweep
from flows.sweep_search import COMPLETE, Trial
from stages.tracking import StageRun, flush, stage_run
from stages.tracking_store import prepare_store, tracking_uri

EXPERIMENT = "sweeps"  # apart from the runs of the pipeline itself


class SweepTracking:
    """What a sweep tells MLflow."""

    def __init__(self, run: StageRun, root: Path, environment: dict[str, str]) -> None:
        self.environment = environment  # for the stages of the trials
        self._run, self._root = run, root

    def ended(self, trial: Trial, best: Trial | None) -> None:
        """A trial has ended; what it could not send waits in `root`."""
        values = {} if trial.value is None else {f"value_{trial.state}": trial.value}
        if best is not None and best.value is not None:
            values["best_value"] = best.value
        self._run.log_metrics({**values, "seconds": trial.seconds}, step=trial.number)
        try:
            if self._run.run_id is not None:  # the server has answered
                flush(self._root)  # a stage that was ended early has sent nothing itself
                self._label(trial, self._run.run_id)
        except Exception as error:  # it does no more: never worth a trial
            why = (str(error).splitlines() or [type(error).__name__])[0][:200]
            print(f"warning: MLflow does not know how trial {trial.number} ended: {why}", file=sys.stderr)

    def done(self, best: Trial | None, files: Sequence[Path]) -> None:
        """All trials have ended."""
        if best is not None:
            self._run.log_params({f"best.{key}": value for key, value in best.values.items()})
        for file in files:
            self._run.log_artifact(file)

    def _label(self, trial: Trial, run_id: str) -> None:
        from mlflow import MlflowClient

        client = MlflowClient(self.environment["MLFLOW_TRACKING_URI"])
        sweep = client.get_run(run_id)
        below = f"tags.`mlflow.parentRunId` = '{sweep.data.tags['mlflow.parentRunId']}'"
        state = trial.state if trial.state == COMPLETE else f"{trial.state} {trial.reason}"
        for run in client.search_runs([sweep.info.experiment_id], f"{below} and tags.`sweep.trial` = '{trial.number}'"):
            client.set_tag(run.info.run_id, "sweep.state", state)


@contextmanager
def tracked(root: Path, key: str, flow_url: str, sweep: Sweep, folder: Path) -> Iterator[SweepTracking]:
    """The sweep's run for as long as the block lasts; interrupted, it goes on in the same one (noted in `folder`)."""
    environment = {
        "MLFLOW_TRACKING_URI": tracking_uri(root),
        "MLFLOW_EXPERIMENT_NAME": os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT),
        "PIPELINE_RUN": key,
        "PIPELINE_SWEEP": folder.name,
        "PIPELINE_FLOW_URL": flow_url,
    }
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        prepare_store(environment["MLFLOW_TRACKING_URI"], root)
        params = sweep.model_dump(mode="json", exclude={"space"})
        space = {key: str(what) for key, what in sweep.model_dump(mode="json", include={"space"})["space"].items()}
        with stage_run("sweep", params={**params, "space": space}, resume_from=folder) as run:
            yield SweepTracking(run, root, environment)
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
