"""`dvc exp`, `dvc metrics` and `dvc plots` in a small project with this one's plots: what a person sees there."""

import json
import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from toy_project import ROOT

from flows.run_stage import child_environment

SHIPPED: dict[str, Any] = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())
# A validation each 100 steps, a training loss each 50: columns are empty where there is nothing, as stages.training's.
TRAIN = """
import csv, json, pathlib
from ruamel.yaml import YAML

rate = YAML(typ="safe").load(pathlib.Path("params.yaml").read_text())["pretrain"]["learning_rate"]
pathlib.Path("models/pretrained").mkdir(parents=True)
pathlib.Path("reports").mkdir(exist_ok=True)
with open("models/pretrained/curve.csv", "w", newline="") as file:
    writer = csv.DictWriter(file, ["step", "train_loss", "validation_loss"])
    writer.writeheader()
    for step in range(50, 301, 50):
        writer.writerow({"step": step, "train_loss": 1 / rate + 50 / step})
        if step % 100 == 0:
            writer.writerow({"step": step, "validation_loss": 2 / rate + 50 / step})
pathlib.Path("reports/scores.json").write_text(json.dumps({"translation": {"chrf": 100 * rate, "gain": 10 * rate}}))
"""
PIPELINE: dict[str, Any] = {
    "stages": {
        "pretrain": {
            "cmd": "python train.py",
            "deps": ["train.py"],
            "params": ["pretrain"],
            "outs": ["models/pretrained"],
            "metrics": SHIPPED["stages"]["report"]["metrics"],
        }
    },
    "plots": SHIPPED["plots"],
}


def typed(folder: Path, command: str) -> str:
    """What a line of shell prints to its standard output; its failure is an error."""
    done = subprocess.run(
        command, shell=True, cwd=folder, env=child_environment({}), text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A commit with a run of learning rate 0.1, and the experiment `faster` beside it with 0.2."""
    folder = tmp_path_factory.mktemp("experiments")
    with (folder / "dvc.yaml").open("w") as file:
        YAML().dump(PIPELINE, file)
    (folder / "train.py").write_text(TRAIN)
    (folder / "params.yaml").write_text("pretrain: {learning_rate: 0.1, steps: 300}\n")
    (folder / ".gitignore").write_text("/models/\n/reports/\n")
    typed(folder, "git init -q -b main && git config user.name t && git config user.email t@example.org")
    typed(folder, "dvc init -q")
    shutil.copytree(ROOT / ".dvc/plots", folder / ".dvc/plots", dirs_exist_ok=True)
    typed(folder, "dvc repro -q && git add -A && git commit -qm run")
    typed(folder, "dvc exp run -q -S pretrain.learning_rate=0.2 --name faster")
    return folder


def test_an_experiment_is_a_line_with_what_differs(project: Path) -> None:
    table = typed(project, "dvc exp show --csv --only-changed")
    header, *lines = [line.split(",") for line in table.splitlines()]
    rows = {row["Experiment"] or row["rev"]: row for row in (dict(zip(header, line, strict=True)) for line in lines)}
    assert {"translation.chrf", "translation.gain", "pretrain.learning_rate"} < set(header)
    assert "pretrain.steps" not in header
    assert (rows["main"]["pretrain.learning_rate"], rows["main"]["translation.gain"]) == ("0.1", "1.0")
    assert (rows["faster"]["pretrain.learning_rate"], rows["faster"]["translation.gain"]) == ("0.2", "2.0")


def test_two_runs_are_compared(project: Path) -> None:
    found = json.loads(typed(project, "dvc exp diff main faster --json"))
    assert found["params"]["params.yaml"]["pretrain.learning_rate"] == {"old": 0.1, "new": 0.2, "diff": 0.1}
    found = json.loads(typed(project, "dvc metrics diff main faster --json"))
    change = found["reports/scores.json"]["translation.chrf"]
    assert (change["old"], change["new"]) == (10.0, 20.0)


def test_curves_lie_over_one_another_without_the_empty_steps(project: Path) -> None:
    drawn = json.loads(typed(project, "dvc plots diff main faster --json"))["data"]
    (name,) = (next(iter(plot)) for plot in SHIPPED["plots"])
    (plot,) = drawn[name]
    assert set(plot["revisions"]) == {"main", "faster"}
    picture = json.loads(plot["content"]) if isinstance(plot["content"], str) else plot["content"]
    encoding = picture["encoding"]
    assert encoding["y"]["title"] == "loss (nats per token)"
    (transform,) = picture["transform"]
    y = encoding["y"]["field"]
    assert transform == {"filter": f"isValid(datum['{y}']) && datum['{y}'] !== ''"}
    shown = [row for row in picture["data"]["values"] if row[y] != ""]
    assert len(shown) < len(picture["data"]["values"])
    for revision, rate in (("main", 0.1), ("faster", 0.2)):
        for field, factor, steps in (("train_loss", 1, 6), ("validation_loss", 2, 3)):
            points = [row for row in shown if (row["rev"], row["field"]) == (revision, field)]
            assert len(points) == steps
            for point in points:
                assert math.isclose(float(point[y]), factor / rate + 50 / float(point["step"]))


def test_the_shipped_plots_name_what_the_stages_leave() -> None:
    made = [out for stage in SHIPPED["stages"].values() for out in stage.get("outs", [])]
    for plot in SHIPPED["plots"]:
        ((_, settings),) = plot.items()
        assert (ROOT / ".dvc/plots" / f"{settings['template']}.json").is_file()
        for file in settings["y"]:
            assert any(Path(file).is_relative_to(out) for out in made), file
