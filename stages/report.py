"""Join all results: reports/{scores,metrics}.json, reports/report.html, reports/plots, a model card for each task.

The page is one file that needs no other, so that it can be mailed; it links the runs in MLflow and Prefect that it is
from. reports/plots has its pictures for `dvc plots` and MLflow; reports/model_cards says of each model what the hub of
Hugging Face asks. Costs about 3 s.
"""

import argparse
import csv
import hashlib
import json
import os
import platform
from collections.abc import Collection
from pathlib import Path
from typing import Any

from lightning_modules.errors import PipelineError
from stages.console import run_stage, stage_parser
from stages.dvc_lock import locked_stages
from stages.model_card import model_card
from stages.outputs import whole_directory, whole_file
from stages.params import Params, load_params
from stages.report_costs import costs
from stages.report_page import Results, page
from stages.report_pictures import pictures
from stages.report_table import Interval, comparison_table, headline, table_text
from stages.scrub import scrubbed

REPORTS = Path("reports")
Json = dict[str, Any]


def gather(root: Path) -> Results:
    """Reads what the stages before left under `root`. Raises PipelineError where something is missing or broken."""
    params = load_params(root / "params.yaml")
    reports, models = root / REPORTS, root / "models"
    rows = comparison_table(reports, params.tasks)
    tasks = list(dict.fromkeys(row.task for row in rows))
    if not tasks or (missing := sorted(set(params.tasks).difference(tasks))):
        of = f" of {', '.join(missing)}" if tasks else ""
        raise PipelineError(f"{reports / 'tasks'} holds no result{of}: run the evaluate stages first")
    curves = {task: _csv(reports / "tasks" / task / "curve.csv") for task in tasks}
    pretraining = models / "pretrained" / "curve.csv"
    curves = {"pretraining": _csv(pretraining) if pretraining.exists() else []} | curves
    trained = sorted(["pretrained", *tasks, *(f"{task}-scratch" for task in tasks)])
    training = {name: _json(models / name / "training.json") for name in trained}
    analysis = {task: _json(reports / "tasks" / task / "analysis.json") for task in tasks}
    attention = {task: _text(reports / "tasks" / task / "attention.svg") for task in tasks}
    return Results(
        rows=rows,
        predictions={task: _json_lines(reports / "tasks" / task / "predictions.jsonl") for task in tasks},
        analysis=analysis,
        pictures=pictures(rows, curves, analysis, attention),
        prepare=_json(reports / "prepare.json"),
        dropped=_json_lines(reports / "dropped.jsonl"),
        leakage=_json(reports / "leakage.json"),
        training=training,
        pretraining=_json(reports / "pretraining.json"),
        configs={task: _json(models / task / "config.json") for task in tasks},
        costs=costs(params, training),
        params=scrubbed((root / "params.yaml").read_text(encoding="utf-8")),
        lineage=_lineage(root, params, training),
        pages=_pages(root, params),
    )


def scores(results: Results) -> Json:
    """reports/scores.json: of each task the leading metric and what pre-training bought; of pre-training bits per byte.

    What `dvc metrics` and `dvc exp show` compare runs by: few numbers, since each is a column there.
    """
    table: Json = {
        row.task: {row.metric: row.pretrained.score, "gain": row.difference.score}
        for row in results.rows
        if row.primary
    }
    if "bits_per_byte" in results.pretraining:
        table["pretraining"] = {"bits_per_byte": results.pretraining["bits_per_byte"]["score"]}
    return table


def metrics(results: Results) -> Json:
    """reports/metrics.json: task → metric → all numbers, and how pre-training went."""
    table: Json = {}
    for row in results.rows:
        systems = {"pretrained": row.pretrained, "scratch": row.scratch, "difference": row.difference}
        table.setdefault(row.task, {})[row.metric] = _numbers(**systems) | {"baseline": row.baseline.score}
    for task, details in results.analysis.items():
        for name, measured in details.get("likelihood", {}).items():
            table[task][name] = _numbers(**{system: Interval(**values) for system, values in measured.items()})
        for system, found in details.get("calibration", {}).items():
            table[task].setdefault("calibration_error", {})[system] = found["error"]
    numbers = ("validation_loss", "steps", "tokens", "seconds")
    trained, tested = results.training.get("pretrained", {}), results.pretraining
    pretraining = {name: trained[name] for name in numbers if name in trained}
    pretraining |= {f"test_{name}": tested[name]["score"] for name in ("perplexity", "bits_per_byte") if name in tested}
    return table | {"pretraining": pretraining}


def _numbers(pretrained: Interval, scratch: Interval, difference: Interval) -> dict[str, float]:
    p = {} if difference.p is None else {"gain_p": difference.p}
    return {
        "pretrained": pretrained.score,
        "pretrained_low": pretrained.low,
        "pretrained_high": pretrained.high,
        "scratch": scratch.score,
        "gain": difference.score,
        "gain_low": difference.low,
        "gain_high": difference.high,
        **p,
    }


def _lineage(root: Path, params: Params, training: dict[str, Json]) -> list[tuple[str, str]]:
    """What the numbers were made from and on, and what that cost. Knows no path outside the repository."""
    from stages.lineage import git_facts

    git = git_facts(root)
    commit = git.get("mlflow.source.git.commit", "none")
    facts = [("code (git commit)", commit + (", with changes on top" if git.get("git.dirty") == "true" else ""))]
    for name in ("params.yaml", "data/tokenizer/tokenizer.json"):
        if (root / name).exists():
            facts.append((f"{name} (SHA-256)", hashlib.sha256((root / name).read_bytes()).hexdigest()))
    for name, stage in locked_stages(root).items():
        outputs = [output for output in stage.get("outs", []) if not output["path"].startswith(str(REPORTS))]
        if _is_of(params, name):
            facts += [(f"{output['path']} (MD5 in DVC)", output.get("md5", "")) for output in outputs]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB"
    if training:
        hours = sum(one.get("seconds", 0) * one.get("devices", 1) for one in training.values()) / 3600
        tokens, flops = (sum(one.get(name, 0) for one in training.values()) for name in ("tokens", "flops"))
        spent = f"{hours:.2f} device hours, {tokens:,} tokens, {flops:.2g} FLOPs a device"
        facts.append((f"all {len(training)} trainings", spent))
    for trained_on in sorted({one["machine"] for one in training.values() if "machine" in one}):
        names = [name for name, one in training.items() if one.get("machine") == trained_on]
        facts.append((f"trained on {trained_on}", ", ".join(names)))
    return [*facts, ("this page made on", f"{machine}, Python {platform.python_version()}")]


def _is_of(params: Params, stage: str) -> bool:
    """Whether params.yaml has that stage of dvc.lock, which keeps those of tasks and sources that are gone."""
    name, _, key = stage.partition("@")
    sources: dict[str, Collection[str]] = {"fetch": params.sources.remote, "fetch_local": params.sources.local}
    return not key or key in sources.get(name, params.tasks.keys())


def _pages(root: Path, params: Params) -> dict[str, str]:
    """Where the runs are to be seen that the results come from; what comes after them is of an earlier time."""
    from stages.lineage import without_credentials
    from stages.tracking_store import run_pages

    flow = without_credentials(os.environ.get("PIPELINE_FLOW_URL", ""))
    later = ("report", "register")
    runs = {stage: page for stage, page in run_pages(root).items() if stage not in later and _is_of(params, stage)}
    return ({"the flow run": flow} if flow else {}) | runs


def _json(path: Path) -> Json:
    try:
        content: Json = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PipelineError(f"{path} cannot be read ({error}): run the stage that makes it again") from error
    return content


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise PipelineError(f"{path} cannot be read ({error}): run evaluate again") from error


def _json_lines(path: Path) -> list[dict[str, str]]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    except (OSError, ValueError) as error:
        raise PipelineError(f"{path} cannot be read ({error}): run evaluate again") from error


def _csv(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except OSError as error:
        raise PipelineError(f"{path} cannot be read ({error}): run the stage that makes it again") from error


def main(_: argparse.Namespace) -> None:
    """Writes all files and prints the table."""
    from stages.tracking import stage_run

    inputs = [REPORTS / name for name in ("prepare.json", "dropped.jsonl", "leakage.json", "pretraining.json", "tasks")]
    with stage_run("report", inputs=inputs) as run:
        results = gather(Path())
        with whole_directory(REPORTS / "plots") as folder:
            for name, picture in results.pictures.items():
                (folder / f"{name}.svg").write_text(picture, encoding="utf-8")
        with whole_directory(REPORTS / "model_cards") as folder:
            for task in results.analysis:
                (folder / f"{task}.md").write_text(model_card(task, results), encoding="utf-8")
        with whole_file(REPORTS / "report.html") as html:
            html.write_text(page(results), encoding="utf-8")
        for name, table in (("scores", scores(results)), ("metrics", metrics(results))):
            with whole_file(REPORTS / f"{name}.json") as file:
                file.write_text(json.dumps(table, indent=2) + "\n")
        primary = [row for row in results.rows if row.primary]
        run.log_metrics({f"{row.task}.{row.metric}": row.pretrained.score for row in primary})
        run.log_metrics({f"{row.task}.{row.metric}.gain": row.difference.score for row in primary})
        for name in ("report.html", "plots", "model_cards"):
            run.log_artifact(REPORTS / name)
        run.show_with_pipeline("report.html")
    print(f"{table_text(results.rows)}\n\n{headline(results.rows)}")
    print(f"\nreport: {REPORTS / 'report.html'}")


if __name__ == "__main__":
    run_stage(main, stage_parser(__doc__))
