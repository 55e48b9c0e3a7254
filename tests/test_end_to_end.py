"""The whole pipeline on a person's own small files, in a copy of this repository: real DVC, Prefect and MLflow.

One run is killed with SIGKILL in the middle of pre-training and started again; the tests then look at what it left.
The tests stand in the order in which they use the workspace.
"""

import csv
import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import tiny
from processes import free_port
from repository_copy import ROOT, copy_of_repository, end_all_in, environment, shell
from ruamel.yaml import YAML
from tiny import read_json

from flows.graph import read_plan
from flows.overrides import overridden

STEPS = 600  # of pre-training, which is killed after the first 100
TINY = {
    "sources.remote": {},
    "sources.local": {"manuals": {"path": "manuals.txt.gz"}, "pairs": {"path": "pairs.csv"}},
    "data": {
        "pretraining": [{"source": "manuals", "reader": "text", "split": "line"}],
        "translation": [
            {"source": "pairs", "reader": "table", "columns": {"source": "sentence", "target": "first words"}}
        ],
    },
    "tasks": {
        "translation": {"steps": 60, "learning_rate": 1e-3, "max_source_tokens": 64, "max_target_tokens": 16},
    },
    "prepare.validation_share": 0.1,
    "prepare.test_share": 0.1,
    "tokenizer.vocab_size": 600,
    "model.d_model": 32,
    "model.d_ff": 64,
    "model.max_length": 128,
    "pretrain.sequence_length": 32,
    "pretrain.steps": STEPS,
    "pretrain.checkpoint_every": 100,
    "pretrain.threads": 1,
    "evaluate.max_records": 20,
    "evaluate.bootstrap_samples": 100,
    "tracking.registered_model": "tiny",
}
SMALL_SWEEP = {"trials": 2, "fixed": {"pretrain.steps": 40, "pretrain.warmup_steps": 10, "pretrain.validate_every": 10}}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of this repository whose params.yaml names small files of our own."""
    root = copy_of_repository(tmp_path_factory.mktemp("end-to-end"))
    with gzip.open(root / "manuals.txt.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(tiny.sentences()))
    with (root / "pairs.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("sentence", "first words"))
        writer.writerows((sentence, " ".join(sentence.split()[:3])) for sentence in tiny.sentences()[:400])
        file.write("a row without its second column\n")
    (root / "params.yaml").write_text(overridden((ROOT / "params.yaml").read_text(), TINY))
    sweep = root / "recipes/sweeps/pretraining.yaml"
    sweep.write_text(overridden(sweep.read_text(), SMALL_SWEEP))
    shell(root, "git add -A && git -c user.name=t -c user.email=t@example.org commit -qm small")
    yield root
    end_all_in(root)


def stale(root: Path, **changes: object) -> set[str]:
    """The stages that DVC finds changed when some keys of params.yaml are."""
    before = (root / "params.yaml").read_text()
    try:
        (root / "params.yaml").write_text(overridden(before, {k.replace("__", "."): v for k, v in changes.items()}))
        return set(read_plan(root).stale)
    finally:
        (root / "params.yaml").write_text(before)


def kill_all(leader: subprocess.Popen[str]) -> None:
    """What a machine that loses its power does: nobody is asked, nobody cleans up."""
    for process in [*psutil.Process(leader.pid).children(recursive=True), psutil.Process(leader.pid)]:
        try:
            os.kill(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    leader.wait()


def test_what_make_is_told_about_the_tests_reaches_no_make_in_a_test(tmp_path: Path) -> None:
    inner = "import pathlib, repository_copy; print(repository_copy.shell(pathlib.Path(), 'make inner'))"
    rules = ["inner:", "\t@echo told [$(ARGS)]", "outer:", f'\t@"{sys.executable}" -c "{inner}"', ""]
    (tmp_path / "Makefile").write_text("\n".join(rules))
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'tests'}"}
    command = ["make", "--no-print-directory", "outer", "ARGS=tests/test_tasks.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "told []"


def test_a_killed_run_is_finished_by_the_same_command(workspace: Path) -> None:
    with (workspace / "first.log").open("w") as log:
        first = subprocess.Popen(
            ["make", "demo"], cwd=workspace, env=environment(workspace), stdout=log, stderr=log, text=True
        )
        deadline = time.monotonic() + 300
        while not list(workspace.glob(".pipeline/checkpoints/pretrain-*/step-*.ckpt")):
            assert first.poll() is None, (workspace / "first.log").read_text()
            assert time.monotonic() < deadline, (workspace / "first.log").read_text()
            time.sleep(0.1)
        kill_all(first)
    assert not (workspace / "models/pretrained").exists()  # nothing half-written that DVC could take for good
    output = shell(workspace, "make demo")
    assert re.search(r"tokenize\s.*unchanged", output), output
    training = json.loads((workspace / "models/pretrained/training.json").read_text())
    assert training["resumed_from"] >= 100
    steps = [int(row["step"]) for row in csv.DictReader((workspace / "models/pretrained/curve.csv").open())]
    assert steps == sorted(steps)
    assert steps[-1] == STEPS
    for word in ("translation", "chrF", "pre-train", "scratch", "report.html", "make ui", "make serve-flows"):
        assert word in output


def test_then_nothing_is_left_to_do_for_either_way(workspace: Path) -> None:
    output = shell(workspace, "make demo")
    stages = set(read_plan(workspace).stages)
    assert stages == set(re.findall(r"^(\S+)\s+unchanged$", output, re.M))
    assert {"fetch_local@manuals", "pretrain", "finetune@translation", "scratch@translation", "register"} <= stages
    assert "up to date" in shell(workspace, "dvc repro")


def test_a_change_reruns_what_depends_on_it_and_nothing_else(workspace: Path) -> None:
    trainings = {"finetune@translation", "scratch@translation"}
    task = {"steps": 60, "learning_rate": 2e-3, "max_source_tokens": 64, "max_target_tokens": 16}
    assert stale(workspace, tasks={"translation": task}) == {*trainings, "evaluate@translation", "report"}
    assert stale(workspace, tokenizer__vocab_size=500) == {"tokenizer"}
    assert stale(workspace, pretrain__steps=10) == {"pretrain", "evaluate_pretraining"}
    assert stale(workspace, prepare__min_characters=4) == {"prepare"}
    params = (workspace / "params.yaml").read_text()
    (workspace / "params.yaml").write_text(f"# a comment\n{params}")
    assert not read_plan(workspace).stale
    (workspace / "params.yaml").write_text(params)
    module = workspace / "lightning_modules/decoding.py"
    code = module.read_text()
    module.write_text(f"{code}\n# edited\n")
    assert {"pretrain", *trainings, "evaluate@translation"} <= read_plan(workspace).stale
    assert not {"prepare", "tokenizer", "tokenize"} & read_plan(workspace).stale
    module.write_text(code)


def test_the_bad_row_is_set_aside_with_its_line(workspace: Path) -> None:
    [bad] = [json.loads(line) for line in (workspace / "data/prepared/quarantine.jsonl").read_text().splitlines()]
    assert bad["file"].endswith("pairs.csv")
    assert bad["line"] == 402
    assert bad["purpose"] == "translation"
    counts = json.loads((workspace / "reports/prepare.json").read_text())["translation"]["pairs"]
    assert counts["quarantined"] == 1


def test_mlflow_knows_what_every_run_was_made_from(workspace: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{workspace}/.pipeline/mlflow.db")
    experiment = client.get_experiment_by_name("default")
    runs = client.search_runs([experiment.experiment_id])
    by_stage: dict[str, list] = {}
    for run in runs:
        by_stage.setdefault(run.data.tags["pipeline.stage"], []).append(run)
    assert len(by_stage["pretrain"]) == 1, "the killed training goes on in the same run"
    [pretrain] = by_stage["pretrain"]
    assert pretrain.info.status == "FINISHED"
    history = client.get_metric_history(pretrain.info.run_id, "train_loss")
    # Steps between the last checkpoint and the kill were made twice, and are told once.
    assert [point.step for point in history] == list(range(STEPS // 100, STEPS + 1, STEPS // 100))
    parents = {run.info.run_id for run in by_stage["all"]}
    for stage in ("prepare", "tokenizer", "tokenize", "pretrain", "finetune@translation", "evaluate@translation"):
        run = by_stage[stage][0]
        assert run.data.tags["mlflow.parentRunId"] in parents
        assert run.data.tags["mlflow.source.git.commit"]
        assert run.inputs.dataset_inputs, f"{stage} names no dataset"
    version = client.get_model_version_by_alias("tiny-translation", "champion")
    assert version.tags["git_commit"]
    report = by_stage["report"][0].info.run_id
    assert "report.html" in {file.path for file in client.list_artifacts(report)}
    assert {Path(file.path).name for file in client.list_artifacts(report, "plots")} == plots(workspace)


def plots(root: Path) -> set[str]:
    """The report's pictures."""
    names = {path.name for path in (root / "reports/plots").iterdir()}
    assert {"scores.svg", "curve_pretraining.svg", "curve_translation.svg"} <= names
    return names


def test_dvc_shows_the_plots_and_those_of_another_commit_beside_them(workspace: Path) -> None:
    shell(workspace, "git add dvc.lock && git -c user.name=t -c user.email=t@example.org commit -qm results")
    for command, revisions in (("show", ("workspace",)), ("diff HEAD", ("workspace", "HEAD"))):
        shell(workspace, f"dvc plots {command} -o {revisions[-1]}_plots")
        folder = workspace / f"{revisions[-1]}_plots"
        shown = {path.name for path in (folder / "static").iterdir()}
        assert shown == {f"{revision}_reports_plots_{name}" for revision in revisions for name in plots(workspace)}
        assert "train_loss" in (folder / "index.html").read_text()
        shutil.rmtree(folder)


def readme_commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    return [line.split("  #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


def test_every_command_of_the_readme_does_what_it_says(workspace: Path) -> None:
    commands = readme_commands()
    assert {"make demo", "make test", "dvc repro", ".venv/bin/python -m stages.params"} <= set(commands)
    for command in commands:
        if command == "make test":  # this very run; there it is enough that make knows what to do
            command = "make -n test"
        if "exp run" in command:
            command = command.replace("steps=100", "steps=61")
        output = shell(workspace, command)
        if "exp run" in command:
            assert "Stage 'pretrain' didn't change, skipping" in output
            assert read_json(workspace / "models/translation/training.json")["steps"] == 61
        if command == "dvc metrics show":
            assert "translation" in output
        if command.endswith("stages.estimate"):
            assert "FLOPs" in output
        if command == "make sweep":
            with (workspace / "reports/sweeps/pretraining/trials.csv").open(newline="") as file:
                assert [trial["state"] for trial in csv.DictReader(file)] == ["complete"] * 2
    for name in ("hugging-face/model.safetensors", "ctranslate2/model.bin", "onnx/encoder.onnx", "onnx/decoder.onnx"):
        assert (workspace / "exported" / name).stat().st_size > 1000


def test_the_readme_yaml_is_what_params_take(workspace: Path) -> None:
    from stages.params import load_params

    [block] = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    asked = YAML(typ="safe").load(block)
    changes = {"sources.local": asked["sources"]["local"]} | {f"data.{k}": v for k, v in asked["data"].items()}
    path = workspace / "readme-params.yaml"
    path.write_text(overridden((workspace / "params.yaml").read_text(), changes))
    assert load_params(path).data["pretraining"][0].source == "handbook"
    path.unlink()


def test_make_ui_serves_mlflow(workspace: Path) -> None:
    port = free_port()
    server = subprocess.Popen(["make", "ui", f"PORT={port}"], cwd=workspace, env=environment(workspace))
    try:
        deadline = time.monotonic() + 240
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                    assert answer.status == 200
                    break
            except OSError:
                assert server.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.5)
    finally:
        kill_all(server)
