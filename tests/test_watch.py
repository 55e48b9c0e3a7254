"""The watch against a real Prefect server, on a small project with real DVC stages and a folder that it watches."""

import json
import os
import subprocess
import sys
import time
from contextlib import chdir
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import tiny
from prefect_api import post, task_runs
from stage_runs import set_params
from toy_project import ROOT

from flows.overrides import overridden
from flows.workspace import workspace
from lightning_modules.model_folder import save_model
from stages.drift_models import bits_per_byte
from stages.params import load_params

DVC_YAML = """
stages:
  fetch_local:
    foreach: ${sources.local}
    do:
      cmd: python work.py fetch
      deps: ["${item.path}"]
      outs: ["data/raw/${key}"]
  prepare:
    cmd: python work.py prepare
    deps: [data/raw]
    params: [prepare.min_characters]
    outs: [data/prepared]
  leakage:
    cmd: python work.py leakage
    deps: [data/prepared]
    outs: [reports/leakage.passed]
  pretrain:
    cmd: python work.py pretrain
    deps: [data/prepared, reports/leakage.passed]
    outs: [models/pretrained]
"""
# Every fourth line is held out; the model that a training "makes" is the one that `mode` names.
WORK = """
import pathlib, shutil, sys
import pyarrow as pa, pyarrow.parquet as pq
from stages.splits import SPLITS, digest

name, root = sys.argv[1], pathlib.Path()
if name == "fetch":
    shutil.copytree("inbox", "data/raw/inbox")
elif name == "prepare":
    texts = {line for file in root.glob("data/raw/inbox/*.txt") for line in file.read_text().splitlines()}
    folder = root / "data/prepared/pretraining"
    folder.mkdir(parents=True)
    keyed = sorted((digest(text), text) for text in texts)
    parts = {"test": [one for one in keyed if int(one[0], 16) % 4 == 0]}
    parts |= {"train": [one for one in keyed if one not in parts["test"]], "validation": []}
    for split in SPLITS:
        columns = {"id": [one[0] for one in parts[split]], "text": [one[1] for one in parts[split]]}
        table = pa.table({name: pa.array(values, "string") for name, values in columns.items()})
        pq.write_table(table, folder / f"{split}.parquet")
elif name == "leakage":
    root.joinpath("reports").mkdir(exist_ok=True)
    root.joinpath("reports/leakage.passed").write_text("")
elif name == "pretrain":
    mode = root.joinpath("mode").read_text()
    if mode == "crash":
        sys.exit("error: this training was to fail")
    shutil.copytree(f"made/{mode}", "models/pretrained")
"""
WATCH = """
import json, sys
from flows.pipeline import flush
from flows.watch import watch
state = watch(**json.loads(sys.argv[1]), return_state=True)
flush()
print(state.name, state.message, sep="\\n")
"""
PLACES = {"first": (0, 160), "second": (160, 320), "third": (320, 350), "fourth": (350, 380)}
TEXTS = {name: tiny.sentences()[begin:end] for name, (begin, end) in PLACES.items()}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reproduced once, with the first texts and model A."""
    root = tmp_path_factory.mktemp("project")
    set_params(root, only="translation", model={"architecture": "decoder"},
               pretrain={"objective": "causal_lm", "packing": "joined", "batch_size": 8})  # fmt: skip
    sources = {"sources.remote": {}, "sources.local": {"inbox": {"path": "inbox"}}}
    entry = {"source": "inbox", "reader": "table", "columns": {"source": "a", "target": "b"}}
    data = {"data": {"pretraining": [{"source": "inbox", "reader": "text", "split": "line"}], "translation": [entry]}}
    (root / "params.yaml").write_text(overridden((root / "params.yaml").read_text(), sources | data))
    (root / "dvc.yaml").write_text(DVC_YAML)
    (root / "work.py").write_text(WORK)
    for seed, name in enumerate("AB"):
        (root / "made" / name).mkdir(parents=True)
        made = tiny.model(seed, architecture="decoder")
        save_model(root / "made" / name, made, tiny.write_tokenizer(root / "tokenizer"), {})
    (root / "inbox").mkdir()
    drop(root, "first")
    (root / "mode").write_text("A")
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], cwd=root, env=environment(), check=True)
    subprocess.run([sys.executable, "-m", "dvc", "repro", "-q"], cwd=root, env=environment(), check=True)
    return root


def environment(**more: str) -> dict[str, str]:
    scripts = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    nobody = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "OMP_NUM_THREADS": "1"}
    return {**os.environ, "PATH": scripts, "PYTHONPATH": str(ROOT), **nobody, **more}


def drop(root: Path, name: str, seconds_ago: float = 3600) -> None:
    """Puts a file into the watched folder that was written so long ago."""
    path = root / "inbox" / f"{name}.txt"
    path.write_text("\n".join(TEXTS[name]) + "\n")
    os.utime(path, (time.time() - seconds_ago,) * 2)


def watch(root: Path, api: str, **parameters: Any) -> tuple[str, str]:
    """Runs the flow as a worker would, in a process of its own; gives the name of its state, and its message."""
    command = [sys.executable, "-c", WATCH, json.dumps(parameters)]
    done = subprocess.run(
        command, cwd=root, env=environment(PREFECT_API_URL=api), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    name, message = done.stdout.strip().splitlines()[-2:]
    return name, message


def watch_run(api: str) -> dict[str, Any]:
    """The last run of the watch itself, not of the pipeline in it."""
    query = {"sort": "START_TIME_DESC", "limit": 1, "flows": {"name": {"any_": ["watch"]}}}
    return dict(post(f"{api}/flow_runs/filter", query)[0])


def pipelines_in(api: str, run: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs of the pipeline in it, the first first."""
    query = {"sort": "START_TIME_ASC", "flow_runs": {"parent_flow_run_id": {"any_": [run["id"]]}}}
    return list(post(f"{api}/flow_runs/filter", query))


def looks(root: Path) -> list[dict[str, Any]]:
    path = root / "reports/drift.json"
    return list(json.loads(path.read_text())["looks"]) if path.exists() else []


def test_nothing_new_runs_nothing(api: str, project: Path) -> None:
    assert watch(project, api) == ("Unchanged", "no source has changed")
    run = watch_run(api)
    assert pipelines_in(api, run) == []
    assert post(f"{api}/task_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}}) == []
    assert looks(project) == []


def test_a_file_that_may_be_unfinished_is_left_alone(api: str, project: Path) -> None:
    drop(project, "second", seconds_ago=1)
    name, message = watch(project, api)
    assert name == "Unfinished"
    assert message.startswith("second.txt (of 1 such files)")
    assert not (project / "data/raw/inbox/second.txt").exists()


def test_the_model_in_use_is_measured_before_anything_is_trained(api: str, project: Path) -> None:
    drop(project, "second")
    (project / "mode").write_text("B")
    assert watch(project, api)[0] == "Ran"
    run = watch_run(api)
    drift = task_runs(api, run)["drift"]
    first, second = pipelines_in(api, run)
    before, after = task_runs(api, first), task_runs(api, second)
    assert {name: one["state_name"] for name, one in before.items()} == dict.fromkeys(
        ("fetch_local@inbox", "prepare", "leakage"), "Ran"
    )
    assert after["pretrain"]["state_name"] == "Ran"
    assert max(one["end_time"] for one in before.values()) <= drift["start_time"]
    assert drift["end_time"] <= min(one["start_time"] for one in after.values())

    [look] = looks(project)
    held_out = {row["text"] for row in pq.read_table(project / "data/prepared/pretraining/test.parquet").to_pylist()}
    parts = {"known": held_out & set(TEXTS["first"]), "new": held_out - set(TEXTS["first"])}
    assert {group: found["texts"] for group, found in look["texts"].items()} == {g: len(p) for g, p in parts.items()}
    assert score_of(project, "A", parts["new"]) == look["texts"]["new"]["bits_per_byte"]
    assert score_of(project, "B", parts["new"]) != look["texts"]["new"]["bits_per_byte"]
    [artifact] = post(f"{api}/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run["id"]]}}})
    assert artifact["key"] == "drift"
    assert "| bits per byte |" in artifact["data"]


def score_of(project: Path, model: str, texts: set[str]) -> dict[str, float]:
    from stages.splits import digest

    folder = project / "again" / model
    (folder / "models").mkdir(parents=True)
    (folder / "models/pretrained").symlink_to(project / "made" / model)
    with chdir(folder):
        found: dict[str, float] = bits_per_byte(load_params(project / "params.yaml"), sorted(texts, key=digest))
    return found


def test_what_failed_is_taken_up_where_it_ended_and_known_is_what_the_model_has_seen(api: str, project: Path) -> None:
    drop(project, "third")
    (project / "mode").write_text("crash")
    assert watch(project, api, train=False)[0] == "Measured"
    [prepared] = pipelines_in(api, watch_run(api))
    assert "pretrain" not in task_runs(api, prepared)
    first, second = looks(project)
    assert second["texts"]["known"]["texts"] == sum(one["texts"] for one in first["texts"].values())
    assert second["texts"]["new"]["texts"] == held_out_of(project, "third")

    drop(project, "fourth")
    assert watch(project, api) == ("Failed", "pretrain: this training was to fail")
    third = looks(project)[2]
    assert third["texts"]["known"] == second["texts"]["known"], "nothing was learnt from the new texts yet"
    assert third["texts"]["new"]["texts"] == held_out_of(project, "third", "fourth")

    (project / "mode").write_text("A")
    assert watch(project, api)[0] == "Ran"
    [taken_up] = pipelines_in(api, watch_run(api))
    states = {name: one["state_name"] for name, one in task_runs(api, taken_up).items()}
    assert states == {**dict.fromkeys(("fetch_local@inbox", "prepare", "leakage"), "Unchanged"), "pretrain": "Ran"}
    assert looks(project) == [first, second, third], "it was measured already"
    assert watch(project, api)[0] == "Unchanged"


def held_out_of(project: Path, *names: str) -> int:
    """How many texts of these files were held out."""
    rows = pq.read_table(project / "data/prepared/pretraining/test.parquet").to_pylist()
    return len({row["text"] for row in rows} & {text for name in names for text in TEXTS[name]})


def test_while_another_run_is_at_work_it_is_skipped(api: str, project: Path) -> None:
    with workspace(project):
        name, message = watch(project, api)
    assert name == "Skipped"
    assert "holds this workspace" in message
