"""How much a comparison owes to its seed: fine-tunes both models of a task with other seeds, and scores them.

A bootstrap interval says how sure the score of one model is; this says how models differ that saw the same data in
another order, with other dropout and other first weights. The pre-trained model is the same for all: its own seed is
not varied. Each seed has a folder in .pipeline/seeds in which the stages finetune and evaluate work as they do here, so
DVC's outputs stay untouched; run again, what is done is not done again. Prints mean ± standard deviation and writes
reports/seeds/TASK.json. A seed takes as long as the task's two trainings and its evaluation, on one device; on CPUs so
many run side by side as have cores.
"""

import argparse
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from ruamel.yaml import YAML

from lightning_modules.errors import PipelineError
from stages.console import progress, run_stage, stage_parser
from stages.outputs import whole_file
from stages.parallel import cores, count, local_results
from stages.params import Params, load_params
from stages.params_file import read_params_file
from stages.report_table import NAMES
from stages.tracking_store import prepare_store, tracking_uri

WORK, RESULTS = Path(".pipeline/seeds"), Path("reports/seeds")
COLUMNS = ("pretrained", "scratch", "difference")
HEADER = ("metric", "pre-trained", "from scratch", "pre-training bought")
_CODE = Path(__file__).parents[1]


@dataclass(frozen=True)
class Job:
    """The folder of a seed, and the task to train and score in it."""

    folder: Path  # absolute
    task: str


def seeds(params: Params, task: str, number: int) -> dict[str, Any]:
    """Runs so many seeds, those behind that of params.yaml; returns what reports/seeds/TASK.json holds.

    {"task", "seeds", "records", "scores": {metric: {"pretrained", "scratch", "difference": a score of each seed}}}.
    Raises PipelineError where a stage before has not run.
    """
    if task not in params.tasks:
        raise PipelineError(f"no task {task!r} in params.yaml, which has {', '.join(params.tasks)}")
    if number < 2:
        raise PipelineError("--seeds must be at least 2: one seed has no deviation")
    digest, chosen = _digest(params, task), range(params.seed + 1, params.seed + number + 1)
    os.environ["MLFLOW_TRACKING_URI"] = tracking_uri(Path.cwd())
    os.environ.setdefault("MLFLOW_EXPERIMENT_NAME", "seeds")  # apart from the runs of the pipeline itself
    prepare_store(os.environ["MLFLOW_TRACKING_URI"], Path.cwd())
    jobs = [Job(seed_folder(f"{task}-{seed}", digest, seed), task) for seed in chosen]
    with progress(total=number, name=f"{task} seeds", unit="seed") as bar:
        found = list(local_results(run_seed, jobs, min(number, _side_by_side(params)), bar))
    scores = {
        metric: {column: [one["metrics"][metric][column]["score"] for one in found] for column in COLUMNS}
        for metric in sorted(found[0]["metrics"], key=lambda name: name != found[0]["primary"])
    }
    return {"task": task, "seeds": list(chosen), "records": found[0]["records"], "scores": scores}


def run_seed(job: Job) -> dict[str, Any]:
    """Trains and scores what is not yet; returns the metrics.json of evaluate."""
    report = job.folder / "reports/tasks" / job.task / "metrics.json"
    with chdir(job.folder):
        params = load_params()
        section = params.finetune.model_copy(update={"devices": 1, "num_nodes": 1, "strategy": "auto"})
        params = params.model_copy(update={"finetune": section})
        for from_scratch, model in ((False, job.task), (True, f"{job.task}-scratch")):
            if not (job.folder / "models" / model / "training.json").exists():
                from stages.finetune import finetune  # torch and Lightning: seconds

                finetune(params, job.task, from_scratch)
        if not report.exists():
            from stages.evaluate import evaluate

            evaluate(params, job.task)
    count(1)
    scores: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    return scores


def table(result: dict[str, Any]) -> str:
    """Mean ± standard deviation (of a sample: n - 1) over the seeds, a line a metric."""
    lines = [HEADER]
    for metric, columns in result["scores"].items():
        cells = [_spread(columns[column], "+" if column == "difference" else "") for column in COLUMNS]
        lines.append((NAMES.get(metric, metric), *cells))
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _spread(scores: Sequence[float], sign: str) -> str:
    return f"{mean(scores):{sign}.1f} ± {stdev(scores):.1f}"


def seed_folder(name: str, digest: str, seed: int) -> Path:
    """A folder in which stages find the data and the pre-trained model of this one, and params.yaml with the seed."""
    folder = (WORK / f"{name}-{digest}").resolve()
    for other in WORK.resolve().glob(f"{name}-*"):
        if other != folder:  # of other data, parameters or code
            shutil.rmtree(other)
    (folder / "models").mkdir(parents=True, exist_ok=True)
    for shared in (Path("data"), Path("models/pretrained")):
        if not (folder / shared).is_symlink():
            (folder / shared).symlink_to(shared.resolve(), target_is_directory=True)
    params = read_params_file(Path("params.yaml")).tree  # not as text: YAML knows many spellings of "seed: 1"
    params["seed"] = seed
    with whole_file(folder / "params.yaml") as path, path.open("w", encoding="utf-8") as file:
        YAML().dump(params, file)
    return folder


def _side_by_side(params: Params) -> int:
    """How many trainings may run at once: as many as leave one another their cores."""
    import torch

    threads = params.finetune.threads
    return 1 if torch.cuda.is_available() or threads == "auto" else max(1, cores() // int(threads))


def _digest(params: Params, task: str) -> str:
    """Of all that decides a result but the seed: parameters, data, the pre-trained model, code. 12 hex digits.

    Of a file its name, its size and its first mebibyte.
    """
    decides = {name: getattr(params, name).model_dump(mode="json") for name in ("model", "finetune", "evaluate")}
    decides["task"] = params.tasks[task].model_dump(mode="json")
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode())
    files = [Path("models/pretrained/model.safetensors"), Path(f"data/prepared/{task}/test.parquet")]
    files += sorted(path for path in Path("data/tokens", task).rglob("*") if path.is_file())
    files += sorted(path for room in ("stages", "lightning_modules") for path in (_CODE / room).rglob("*.py"))
    for path in files:
        try:
            digest.update(f"{path.name}:{path.stat().st_size}".encode())
            with path.open("rb") as file:
                digest.update(file.read(2**20))
        except OSError as error:
            raise PipelineError(f"{path} cannot be read ({error}): run the pipeline up to evaluate@{task}") from error
    return digest.hexdigest()[:12]


def main(arguments: argparse.Namespace) -> None:
    """Runs the seeds and tells what they gave."""
    result = seeds(load_params(), arguments.task, arguments.seeds)
    with whole_file(RESULTS / f"{arguments.task}.json") as path:
        path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"{arguments.task}: seeds {', '.join(map(str, result['seeds']))}; {result['records']} test records")
    print(table(result))


if __name__ == "__main__":
    parser = stage_parser(__doc__)
    parser.add_argument("task", help="a task of params.yaml")
    parser.add_argument("--seeds", type=int, default=3, help="how many (3)")
    run_stage(main, parser)
