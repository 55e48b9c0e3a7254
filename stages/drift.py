"""How new data differs from what the models know: measured on the models in use, before anything is trained on it.

On the new and on the known texts of the test splits: bits per byte of models/pretrained, how well its tokenizer covers
the words, and the score of each task's champion in MLflow's registry. A look adds a line to reports/drift.json, a point
to the curves of reports/drift.png and a step to the run `drift` in MLflow. What is not there yet is named and left out.

It is no stage of dvc.yaml, since it reads what DVC is about to replace: the models of the run before beside the data of
this one. `--remember` keeps what is known, and belongs before the new data is prepared; flows/watch.py runs both.
Costs some seconds for the imports, and what evaluating those models costs (stages/drift_models.py).
"""

import argparse
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lightning_modules.errors import PipelineError
from stages.console import run_stage, stage_parser
from stages.drift_known import Groups, Known, held_out, load_known, remember
from stages.drift_models import MODEL, bits_per_byte, champion_scores
from stages.drift_report import PICTURE, REPORT, add_look, draw, findings, numbers, read_looks, table
from stages.drift_words import coverage
from stages.lineage import LATEST
from stages.params import Params, load_params
from stages.registry import connect, mlflow_errors
from stages.tasks import PRETRAINING

PREPARED, RUN = Path("data/prepared"), Path(".pipeline/drift/run")
MOST_TEXTS = 2000  # pre-training texts of a group: the first by the hash of their content
Json = dict[str, Any]


def measure(params: Params, root: Path) -> Json:
    """What one look finds: {"texts": {group: …}, "champions": {task: …}, "not_measured": {what: why}}.

    The groups are `new` and `known`. Raises PipelineError where data/prepared cannot be read.
    """
    known = load_known()
    look: Json = {"texts": {}, "champions": {}, "not_measured": {}}
    _measure_texts(params, held_out(PREPARED, PRETRAINING, known, MOST_TEXTS), known, look)
    _measure_champions(params, known, root, look)
    return look


def _measure_texts(params: Params, groups: Groups, known: Known, look: Json) -> None:
    from lightning_modules.model_folder import load_tokenizer

    if not MODEL.is_dir():
        look["not_measured"][str(MODEL)] = "it is not there: nothing was trained yet, or its training did not end"
        return
    tokenizer, chance = load_tokenizer(MODEL), (params.evaluate.bootstrap_samples, params.seed)
    for name, records in (("new", groups.new), ("known", groups.known)):
        texts = [record["text"] for record in records]
        found: Json = {"texts": len(texts), **coverage(texts, tokenizer, known.words, *chance)}
        if texts:
            try:
                found["bits_per_byte"] = bits_per_byte(params, texts)
            except PipelineError as error:
                look["not_measured"][f"bits per byte of {name} texts"] = str(error)
        look["texts"][name] = found


def _measure_champions(params: Params, known: Known, root: Path, look: Json) -> None:
    try:
        client = connect(root, "measured of the champions")
    except PipelineError as error:
        look["not_measured"]["champions"] = str(error)
        return
    for task in params.tasks:
        try:
            found = held_out(PREPARED, task, known, params.evaluate.max_records)
            with mlflow_errors(f"give the champion of {task}"):
                version, scored = champion_scores(params, task, client, {"new": found.new, "known": found.known})
        except PipelineError as error:
            look["not_measured"][f"champion of {task}"] = str(error)
        else:
            look["champions"][task] = {"version": version, **scored}


def track(look: Json) -> None:
    """Adds a look to the one run `drift` of the experiment, as a step of its metrics: MLflow draws them as curves."""
    import json

    from stages.tracking import stage_run

    RUN.mkdir(parents=True, exist_ok=True)
    latest = LATEST / "drift.json"
    if latest.is_file():  # the run of the looks before: it goes on
        (RUN / "mlflow_run_id").write_text(json.loads(latest.read_text())["run_id"])
    inputs = [PREPARED / PRETRAINING / "test.parquet"]
    with stage_run("drift", inputs=inputs, resume_from=RUN) as run:
        run.log_metrics(numbers(look), step=look["look"])
        for path in (REPORT, PICTURE):
            run.log_artifact(path)


def main(arguments: argparse.Namespace) -> None:
    """Takes a look, or keeps what is known."""
    if arguments.remember:
        print(f"drift: {remember(PREPARED):,} records are known from now on")
        return
    look = {"look": len(read_looks()) + 1, "time": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"}
    look |= measure(load_params(), Path.cwd())
    looks = add_look(look)
    draw(looks)
    track(look)
    print(table(look))
    for line in findings(look):
        print(line)


if __name__ == "__main__":
    parser = stage_parser(__doc__)
    parser.add_argument("--remember", action="store_true", help="only keep what data/prepared holds as known")
    run_stage(main, parser)
