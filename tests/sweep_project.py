"""A small pipeline to sweep, with real DVC stages: what its training validates is a function of its parameters."""

import shutil
from pathlib import Path
from typing import Any

from toy_project import ROOT

from flows.sweep_search import COMPLETE, FAILED, Search, Trial

RATES = "  pretrain.learning_rate: {low: 1.0e-3, high: 0.04, log: true}"
GOOD_AND_BAD = "  pretrain.learning_rate: {low: 1.0e-3, high: 0.2, log: true}\n  pretrain.batch_size: [8, 16, 32]"

DVC_YAML = """
stages:
  tokenize:
    cmd: python work.py tokenize
    deps: [work.py]
    params: [tokenizer.vocab_size]
    outs: [data/tokens]
  pretrain:
    cmd: python work.py pretrain
    deps: [data/tokens, work.py]
    params: [seed, pretrain]
    outs: [models/pretrained]
"""

# A learning rate above 0.05 is a crash, with batches of 32 the training ends only where it is ended. $COUNT is a file
# with a line for each stage that began; where there are fewer than $TOGETHER, a training waits for more before it ends.
# MLflow, whose import takes seconds, is told only where it is TRACKED; a training that is to be ended finds no server.
WORK = """
import csv, json, math, os, pathlib, sys, time
from ruamel.yaml import YAML

name, count = sys.argv[1], pathlib.Path(os.environ["COUNT"])
with count.open("a") as file:
    print(name, pathlib.Path.cwd().name, file=file)
params = YAML(typ="safe").load(pathlib.Path("params.yaml").read_text())
if name == "tokenize":
    pathlib.Path("data/tokens").mkdir(parents=True)
    pathlib.Path("data/tokens/ids").write_text(str(params["tokenizer"]["vocab_size"]))
    sys.exit()
own = params["pretrain"]
rate, vocabulary = own["learning_rate"], int(pathlib.Path("data/tokens/ids").read_text())
if rate > 0.05:
    sys.exit("error: step 3: the loss is not finite")
saved = pathlib.Path(".pipeline/checkpoints/step")
saved.parent.mkdir(parents=True, exist_ok=True)
rows, begin = [], int(saved.read_text()) if saved.exists() else 0
def train(log):
    for step in range(100, 500, 100):
        loss = abs(math.log(rate / 0.01)) + 100 / step + own["batch_size"] + vocabulary / 1e6
        rows.append({"step": step, "train_loss": "", "validation_loss": loss})
        if step <= begin:
            continue
        if step == 400:
            while own["batch_size"] == 32 or len(count.read_text().splitlines()) < int(os.environ.get("TOGETHER", 0)):
                time.sleep(0.1)
        log({"train_loss": loss}, step)
        log({"validation_loss": loss}, step)
        saved.write_text(str(step))

if own["batch_size"] == 32:
    os.environ["MLFLOW_TRACKING_URI"] = "http://127.0.0.1:9"
if os.environ.get("TRACKED"):
    from stages.tracking import stage_run
    with stage_run("pretrain", params={"pretrain": own}, resume_from=saved.parent) as run:
        train(run.log_metrics)
else:
    train(lambda values, step: None)
saved.unlink()
pathlib.Path("models/pretrained").mkdir(parents=True)
with open("models/pretrained/curve.csv", "w", newline="") as file:
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
"""

SWEEP = """
stage: pretrain
metric: validation_loss
trials: {trials}
side_by_side: {side_by_side}
prune_after: {prune_after}
seed: {seed}
fixed: {{pretrain.sequence_length: 64}}
space:
{space}
"""


def make_sweep_project(folder: Path) -> Path:
    """Writes the project into `folder`."""
    (folder / "dvc.yaml").write_text(DVC_YAML)
    (folder / "work.py").write_text(WORK)
    shutil.copy(ROOT / "params.yaml", folder)
    return folder


def write_sweep(
    folder: Path,
    name: str,
    space: str,
    trials: int = 4,
    side_by_side: int = 1,
    prune_after: str = "never",
    seed: int = 3,
) -> str:
    """Writes the file of a sweep; gives its name."""
    text = SWEEP.format(trials=trials, side_by_side=side_by_side, prune_after=prune_after, seed=seed, space=space)
    (folder / f"{name}.yaml").write_text(text)
    return f"{name}.yaml"


def ask_and_tell(search: Search) -> dict[str, Any]:
    """Runs a trial whose value is 1 / learning rate."""
    trial = search.ask()
    assert trial is not None
    value = 1 / trial.values["pretrain.learning_rate"]
    search.tell(Trial(trial.number, trial.values, FAILED if value > 900 else COMPLETE, value))
    return trial.values
