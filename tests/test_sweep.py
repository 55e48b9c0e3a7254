"""Sweeps of a small pipeline: stages, DVC and a Prefect server are real, what the training validates is a formula."""

import csv
import fcntl
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow_tools import client
from prefect_api import post, task_runs
from ruamel.yaml import YAML
from sweep_project import GOOD_AND_BAD, RATES, ask_and_tell, make_sweep_project, write_sweep
from toy_project import ROOT, start_flows

from flows.overrides import overridden
from flows.run_stage import child_environment
from flows.sweep_definition import read_sweep
from flows.sweep_search import Search
from flows.sweep_session import MAY_CHANGE, opened
from flows.sweep_workspace import new_workspace, read_first_steps, read_steps, take_copy
from lightning_modules.errors import PipelineError


@pytest.fixture
def project(tmp_path: Path, fresh_store: Path) -> Path:
    """The pipeline, none of whose stages has run, with an MLflow database."""
    folder = make_sweep_project(tmp_path)
    database = folder / ".pipeline" / "mlflow.db"
    database.parent.mkdir()
    database.write_bytes(fresh_store.read_bytes())
    version = (fresh_store.parent / "mlflow.version").read_text()
    (folder / ".pipeline" / "mlflow.version").write_text(version.replace(str(fresh_store), str(database)))
    return folder


def start(project: Path, api: str, file: str, **environment: str) -> "subprocess.Popen[str]":
    count = str(project / "count")
    return start_flows(project, file, module="flows.sweep", PREFECT_API_URL=api, COUNT=count, **environment)


def run(project: Path, api: str, file: str, **environment: str) -> tuple[int, str]:
    process = start(project, api, file, **environment)
    output, _ = process.communicate(timeout=400)
    return process.returncode, output


def began(project: Path) -> list[str]:
    """The stages that have begun, each with the folder that it works in."""
    return (project / "count").read_text().splitlines() if (project / "count").exists() else []


def await_training(process: "subprocess.Popen[str]", project: Path, times: int) -> None:
    """Waits until the training of trial 0 has begun so many times, and has saved a checkpoint."""
    checkpoint = project / ".pipeline/sweeps/rates/trials/0/.pipeline/checkpoints/step"
    while not (began(project).count("pretrain 0") == times and checkpoint.exists()):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)


def table(project: Path, name: str) -> list[dict[str, str]]:
    with (project / f"reports/sweeps/{name}/trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def least_loss(trial: dict[str, str]) -> float:
    """What the training of work.py comes to."""
    vocabulary = YAML(typ="safe").load((ROOT / "params.yaml").read_text())["tokenizer"]["vocab_size"]
    return abs(math.log(float(trial["pretrain.learning_rate"]) / 0.01)) + 0.25 + vocabulary / 1e6


def mlflow_runs(project: Path) -> list[Any]:
    mlflow = client(f"sqlite:///{project}/.pipeline/mlflow.db")
    return list(mlflow.search_runs([mlflow.get_experiment_by_name("sweeps").experiment_id]))


def test_bad_trials_are_pruned_or_noted_and_the_best_is_told(project: Path, api: str) -> None:
    file = write_sweep(project, "mixed", GOOD_AND_BAD, trials=4, prune_after="1", seed=30)
    params = (project / "params.yaml").read_bytes()
    own = project / ".pipeline/checkpoints"  # of a training of this workspace, as each trial has in its own
    own.mkdir()
    status, output = run(project, api, file, TRACKED="yes")
    assert status == 0, output
    assert not list(own.iterdir())
    trials = table(project, "mixed")
    assert len(trials) == 4
    for trial in trials:
        if float(trial["pretrain.learning_rate"]) > 0.05:
            assert trial["state"] == "failed"
            assert trial["reason"] == "pretrain: step 3: the loss is not finite"
        elif trial["pretrain.batch_size"] == "32":
            assert trial["state"] == "pruned"
        elif trial["state"] == "complete":
            expected = least_loss(trial) + int(trial["pretrain.batch_size"])
            assert float(trial["validation_loss"]) == pytest.approx(expected)
        assert any(line.startswith(f"trial {trial['trial']} ") for line in output.splitlines())
    assert {"complete", "pruned", "failed"} <= {trial["state"] for trial in trials}

    complete = [trial for trial in trials if trial["state"] == "complete"]
    best = min(complete, key=lambda trial: float(trial["validation_loss"]))
    written = YAML(typ="safe").load((project / "reports/sweeps/mixed/best.yaml").read_text())
    assert written == {
        "pretrain": {
            "learning_rate": float(best["pretrain.learning_rate"]),
            "batch_size": int(best["pretrain.batch_size"]),
        }
    }
    for picture in ("history", "curves", "importance"):
        assert "</svg>" in (project / f"reports/sweeps/mixed/{picture}.svg").read_text()

    (flow_run,) = post(f"{api}/flow_runs/filter", {"sort": "EXPECTED_START_TIME_DESC", "limit": 1})
    tasks = task_runs(api, flow_run)
    names = {"complete": "Ran", "pruned": "Pruned", "failed": "Failed"}
    assert {name: task["state_name"] for name, task in tasks.items() if name.startswith("trial")} == {
        f"trial {trial['trial']}": names[trial["state"]] for trial in trials
    }

    # The person's workspace is as it was; with the best values in it, DVC has the model already.
    assert (project / "params.yaml").read_bytes() == params
    assert not (project / "models").exists()
    assert not list((project / ".pipeline/sweeps/mixed/trials").iterdir())
    values = {f"pretrain.{key}": value for key, value in written["pretrain"].items()}
    text = overridden(params.decode(), {"pretrain.sequence_length": 64, **values})
    (project / "params.yaml").write_text(text)
    before = began(project)
    reproduced = subprocess.run(
        [sys.executable, "-m", "dvc", "repro", "-q"], cwd=project, env=child_environment({}), check=False
    )
    assert reproduced.returncode == 0
    assert began(project) == before
    assert (project / "models/pretrained/curve.csv").exists()

    runs = {run.info.run_name: run for run in mlflow_runs(project)}
    parent = runs["sweep mixed"].info.run_id
    for trial in trials:
        if trial["state"] != "failed":  # it ends before it opens a run
            made = runs[f"trial {trial['trial']}"]
            assert made.data.tags["mlflow.parentRunId"] == parent
            assert made.data.tags["sweep.state"].startswith(trial["state"])
            assert made.info.status == {"complete": "FINISHED", "pruned": "KILLED"}[trial["state"]]
    assert runs["sweep"].data.params["best.pretrain.learning_rate"] == best["pretrain.learning_rate"]


def test_a_sweep_stopped_and_killed_goes_on_where_it_was(project: Path, api: str) -> None:
    file = write_sweep(project, "rates", RATES, trials=4)
    process = start(project, api, file, TOGETHER="99")  # none ends by itself
    await_training(process, project, 1)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGINT, output
    process = start(project, api, file, TOGETHER="99")
    await_training(process, project, 2)
    os.kill(process.pid, signal.SIGKILL)  # its stage is left at work
    process.communicate()
    write_sweep(project, "rates", RATES, trials=4, side_by_side=2)
    status, output = run(project, api, file, TOGETHER="5")  # the first two wait for each other
    assert status == 0, output

    trials = table(project, "rates")
    assert [trial["state"] for trial in trials] == ["complete"] * 4
    for trial in trials:
        assert float(trial["validation_loss"]) == pytest.approx(least_loss(trial) + 16)
    stages = began(project)
    assert stages.count("tokenize preparation") == 1
    assert [stages.count(f"pretrain {number}") for number in range(4)] == [3, 1, 1, 1]

    undisturbed = Search(read_sweep(project / file), project / "other.db")
    asked = [ask_and_tell(undisturbed) for _ in range(4)]
    assert [str(values["pretrain.learning_rate"]) for values in asked] == [
        trial["pretrain.learning_rate"] for trial in trials
    ]


@pytest.mark.parametrize(
    ("trials", "run_trials", "said"),
    [
        (50, 3, "error: all of the first 3 trials failed; the last: pretrain: step 3: the loss is not finite"),
        (2, 2, "error: rates: 2 trials, 0 complete, 0 pruned, 2 failed; no trial ran to its end"),
    ],
)
def test_a_sweep_whose_trials_all_fail_has_failed_and_ends_early(
    project: Path, api: str, trials: int, run_trials: int, said: str
) -> None:
    file = write_sweep(project, "rates", "  pretrain.learning_rate: [0.1, 0.2]", trials=trials)
    status, output = run(project, api, file)
    assert status == 1
    assert said in output
    assert sum(line.startswith("pretrain") for line in began(project)) == run_trials


def test_a_sweep_is_one_sweep(project: Path) -> None:
    (project / ".pipeline/sweeps/rates").mkdir(parents=True)
    file = project / write_sweep(project, "rates", RATES)
    Search(read_sweep(file), project / ".pipeline/sweeps/rates/study.db")
    with (project / ".pipeline/sweeps/rates/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with (
            pytest.raises(PipelineError, match="another process runs the sweep rates"),
            opened(project, file, "", print),
        ):
            pass
    (project / ".pipeline/sweeps/rates/sweep.json").write_text(read_sweep(file).model_dump_json(exclude=MAY_CHANGE))
    write_sweep(project, "rates", RATES, prune_after="2")
    with pytest.raises(PipelineError, match="not as it was when this sweep began"), opened(project, file, "", print):
        pass


def test_a_trial_runs_only_what_its_values_change(project: Path) -> None:
    assert [stage.name for stage in read_first_steps(project, "pretrain", []).stages] == ["tokenize"]
    environment = child_environment({"COUNT": str(project / "count"), "PYTHONPATH": str(ROOT)})
    subprocess.run([sys.executable, "-m", "dvc", "repro", "-q", "tokenize"], cwd=project, env=environment, check=True)
    assert read_first_steps(project, "pretrain", ["pretrain.steps"]).stages == ()
    assert [stage.name for stage in read_first_steps(project, "pretrain", ["tokenizer"]).stages] == ["tokenize"]
    (project / "notes").symlink_to(ROOT / "LICENSE")
    take_copy(project, project / ".pipeline/copy", {"pretrain.steps": 7})
    copy = project / ".pipeline/copy"
    steps = read_steps(copy, "pretrain", ["pretrain.learning_rate"])
    assert ([stage.name for stage in steps.stages], steps.needs) == (["pretrain"], ("data/tokens",))
    steps = read_steps(copy, "pretrain", ["tokenizer.vocab_size"])
    assert ([stage.name for stage in steps.stages], steps.needs) == (["tokenize", "pretrain"], ())

    new_workspace(copy, project / ".pipeline/trial", {"pretrain.learning_rate": 0.5})
    params = YAML(typ="safe").load((project / ".pipeline/trial/params.yaml").read_text())["pretrain"]
    assert (params["steps"], params["learning_rate"]) == (7, 0.5)
    assert not (project / ".pipeline/trial/data").exists()
