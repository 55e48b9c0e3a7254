"""Join all results in one table and one page: reports/metrics.json and reports/report.html.

The page is one file without references to others, so that it can be mailed. Costs about 3 s.
"""

import argparse
import csv
import hashlib
import json
import os
import platform
from pathlib import Path
from typing import Any

from lightning_modules.errors import PipelineError
from stages.console import run_stage, stage_parser
from stages.outputs import whole_file
from stages.params import load_params
from stages.report_costs import costs
from stages.report_page import Results, page
from stages.report_table import comparison_table, table_text

REPORTS = Path("reports")
Json = dict[str, Any]


def gather(root: Path) -> Results:
    """Reads what the stages before left under `root`. Raises PipelineError where something is missing or broken."""
    reports, models = root / REPORTS, root / "models"
    rows = comparison_table(reports)
    if not rows:
        raise PipelineError(f"{reports / 'tasks'} holds no result: run the evaluate stages first")
    tasks = list(dict.fromkeys(row.task for row in rows))
    curves = {task: _csv(reports / "tasks" / task / "curve.csv") for task in tasks}
    pretraining = models / "pretrained" / "curve.csv"
    training = {path.parent.name: _json(path) for path in sorted(models.glob("*/training.json"))}
    return Results(
        rows=rows,
        predictions={task: _json_lines(reports / "tasks" / task / "predictions.jsonl") for task in tasks},
        curves={"pretraining": _csv(pretraining) if pretraining.exists() else []} | curves,
        prepare=_json(reports / "prepare.json"),
        training=training,
        costs=costs(load_params(root / "params.yaml"), training),
        attention={task: _text(reports / "tasks" / task / "attention.svg") for task in tasks},
        lineage=_lineage(root),
    )


def metrics(results: Results) -> Json:
    """reports/metrics.json: task → metric → numbers, and how pre-training went."""
    table: Json = {}
    for row in results.rows:
        table.setdefault(row.task, {})[row.metric] = {
            "pretrained": row.pretrained.score,
            "pretrained_low": row.pretrained.low,
            "pretrained_high": row.pretrained.high,
            "scratch": row.scratch.score,
            "baseline": row.baseline.score,
            "gain": row.difference.score,
            "gain_low": row.difference.low,
            "gain_high": row.difference.high,
        }
    numbers = ("validation_loss", "steps", "tokens", "seconds")
    pretraining = results.training.get("pretrained", {})
    return table | {"pretraining": {name: pretraining[name] for name in numbers if name in pretraining}}


def _lineage(root: Path) -> list[tuple[str, str]]:
    """What the numbers were made from and on. Knows no path outside the repository."""
    from ruamel.yaml import YAML

    from stages.lineage import git_facts

    git = git_facts(root)
    commit = git.get("mlflow.source.git.commit", "none")
    facts = [("code (git commit)", commit + (", with changes on top" if git.get("git.dirty") == "true" else ""))]
    for name in ("params.yaml", "data/tokenizer/tokenizer.json"):
        if (root / name).exists():
            facts.append((f"{name} (SHA-256)", hashlib.sha256((root / name).read_bytes()).hexdigest()))
    try:
        stages = YAML(typ="safe").load((root / "dvc.lock").read_text())["stages"]
    except (OSError, KeyError, TypeError):
        stages = {}
    for stage in stages.values():
        outputs = [output for output in stage.get("outs", []) if not output["path"].startswith(str(REPORTS))]
        facts += [(f"{output['path']} (MD5 in DVC)", output.get("md5", "")) for output in outputs]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB"
    return [*facts, ("this page made on", f"{machine}, Python {platform.python_version()}")]


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
    """Writes both files and prints the table."""
    from stages.tracking import stage_run

    inputs = [REPORTS / "prepare.json", REPORTS / "tasks"]
    with stage_run("report", inputs=inputs) as run:
        results = gather(Path())
        with whole_file(REPORTS / "report.html") as html, whole_file(REPORTS / "metrics.json") as table:
            html.write_text(page(results), encoding="utf-8")
            table.write_text(json.dumps(metrics(results), indent=2) + "\n")
        primary = [row for row in results.rows if row.primary]
        run.log_metrics({f"{row.task}.{row.metric}": row.pretrained.score for row in primary})
        run.log_metrics({f"{row.task}.{row.metric}.gain": row.difference.score for row in primary})
        run.log_artifact(REPORTS / "report.html")
    print(table_text(results.rows))
    print(f"\nreport: {REPORTS / 'report.html'}")


if __name__ == "__main__":
    run_stage(main, stage_parser(__doc__))
