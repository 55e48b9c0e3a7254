"""Put the fine-tuned models in the MLflow registry: models/TASK → NAME-TASK, reports/registered.json.

A model that the gate refuses gets no alias; of the others one that is surely better than the present champion becomes
the alias `champion`, any other `challenger`: `stages.promotion`, docs/promotion.md. `mlflow models serve -m
models:/NAME-TASK@champion` serves it. A model that is there already is not registered again. Costs about 5 s a model.
Without a tracking server it is an error: a model that silently was not registered would be missed late.
"""

import argparse
import hashlib
import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lightning_modules.errors import PipelineError
from stages.console import progress, run_stage, stage_parser
from stages.dvc_lock import locked_stages
from stages.election import elect
from stages.lineage import LATEST, git_facts
from stages.outputs import whole_file
from stages.params import Params, load_params
from stages.promotion import PYTORCH, Judge, Scored, check_export, read_scored, refusals
from stages.registry import CHALLENGER, CHAMPION, LOCK, REFUSED, Registry, connect, mlflow_errors, silent
from stages.spool import file_lock
from stages.tasks import TASKS
from stages.tracking_store import tracking_uri, ui_url

REGISTERED = Path("reports/registered.json")
_NEEDED = ("mlflow", "numpy", "pandas", "safetensors", "tokenizers", "torch")  # by served_model and what it imports
_FILES = ("model.safetensors", "config.json", "tokenizer.json")  # all that a model is; not how its training went
_CODE = Path(__file__).parent


@dataclass(frozen=True)
class Candidate:
    """A model folder and what is known of it."""

    task: str
    name: str  # in the registry
    folder: Path
    score: float
    scored: Scored
    predictions: Path
    leaked: float  # share of its test records that stand in training text
    tags: dict[str, str]


def candidates(params: Params, root: Path) -> list[Candidate]:
    """The model of every task with its scores. Raises PipelineError where one is missing."""
    table, leakage = _read(root / "reports" / "metrics.json", "report"), _read(root / "reports/leakage.json", "leakage")
    commit = git_facts(root).get("mlflow.source.git.commit", "")
    lock = _locked_hashes(root)
    found = []
    for task in params.tasks:
        metric, folder = TASKS[task].primary, root / "models" / task
        try:
            scores, leaked = table[task][metric], leakage[f"{task}/test"]["share"]
        except KeyError as error:
            raise PipelineError(
                f"reports/metrics.json has no {metric} of {task}, or reports/leakage.json no share ({error}): run the "
                "stages leakage and report again"
            ) from None
        evaluated = root / LATEST / f"evaluate@{task}.json"
        tags = {
            "task": task,
            "metric": metric,
            "score": repr(scores["pretrained"]),
            "score_interval": f"{scores['pretrained_low']} to {scores['pretrained_high']}",
            "gain_over_scratch": repr(scores["gain"]),
            "gain_interval": f"{scores['gain_low']} to {scores['gain_high']}",
            "leaked_share": repr(leaked),
            "engine": params.evaluate.engine,
            "sha256": _digest(folder),
            "git_commit": commit,
            "dvc_md5": lock.get(f"models/{task}", ""),
            "test_md5": lock.get(f"data/prepared/{task}/test.parquet", ""),
            "training_run": str(_read(folder / "training.json", f"finetune@{task}").get("mlflow_run_id") or ""),
            "evaluation_run": str(_read(evaluated, "evaluate")["run_id"]) if evaluated.exists() else "",
        }
        name = f"{params.tracking.registered_model}-{task}"
        predictions = root / "reports" / "tasks" / task / "predictions.jsonl"
        known = {key: value for key, value in tags.items() if value}
        scored = read_scored(predictions)
        found.append(Candidate(task, name, folder, scores["pretrained"], scored, predictions, leaked, known))
    return found


def register(candidate: Candidate, client: Any, params: Params) -> dict[str, str | None]:
    """Registers one model in MLflow's active run, where it is not there yet, and gives it its alias."""
    reasons, export = _gate(candidate, params)
    registry = Registry(client, candidate.name)
    same = [n for n, tags in registry.versions().items() if tags.get("sha256") == candidate.tags["sha256"]]
    number = same[-1] if same else _log(candidate)
    registry.tag(number, **candidate.tags, **export, predictions=_log_predictions(candidate))
    if reasons:
        kept = registry.alias(CHAMPION) == number
        alias, reason = None, "; ".join(reasons) + (", but it stays champion until it is rolled back" if kept else "")
        registry.drop_alias(CHALLENGER, number)  # which it has where a rule was tightened since
        registry.tag(number, state=REFUSED, alias_reason=reason)
    else:
        alias, reason = elect(registry, number, _judge(candidate, number, registry, params))
    return {
        "model": candidate.name,
        "version": number,
        "alias": alias,
        "state": registry.versions()[number]["state"],
        "reason": reason,
        "uri": f"models:/{candidate.name}{f'@{alias}' if alias else f'/{number}'}",
    }


def _gate(candidate: Candidate, params: Params) -> tuple[list[str], dict[str, str]]:
    """Why the model is refused, if it is, and what was found of its export, as a tag."""
    rules = params.promotion
    least = rules.min_score.get(candidate.task)
    reasons = refusals(candidate.folder, candidate.score, least, candidate.leaked, params.leakage.max_share)
    if reasons or not rules.check_export:
        return reasons, {}
    fine, found = check_export(candidate.folder, candidate.scored.sources)
    return ([] if fine else [found]), {"export": found}


def _judge(candidate: Candidate, number: str, registry: Registry, params: Params) -> Judge:
    """Compares versions by their answers to the candidate's test texts."""

    def logged(other: str, engine: str) -> Scored:
        tags = registry.versions()[other]
        if tags.get("engine", PYTORCH) != engine:
            raise PipelineError(f"what version {other} answered was not written by {engine}")
        with registry.downloaded(tags.get("predictions")) as file:
            return read_scored(file)

    def decode(other: str, sources: list[str], engine: str) -> list[str]:
        import torch

        from lightning_modules.interop.ctranslate2_engine import CTranslate2Engine
        from lightning_modules.model_folder import read_config
        from lightning_modules.text_to_text import TextToText

        torch.set_num_threads(params.evaluate.threads)
        with registry.downloaded(f"models:/{candidate.name}/{other}/artifacts/{candidate.task}") as folder:
            if engine != PYTORCH and read_config(folder)["transformer"]["architecture"] != "encoder":
                return CTranslate2Engine(folder).generate(sources)
            return TextToText.load(folder, "cuda" if torch.cuda.is_available() else "cpu").generate(sources)

    metric, chance = TASKS[candidate.task].primary, (params.evaluate.bootstrap_samples, params.seed)
    return Judge(candidate.scored, number, metric, *chance, params.evaluate.engine, logged, decode)


def _log(candidate: Candidate) -> str:
    """Logs the model with its code, its signature and an example; returns the number of its version."""
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types.schema import ColSpec, Schema

    logged = mlflow.pyfunc.log_model(
        name=candidate.task,
        python_model=str(_CODE / "served_model.py"),
        code_paths=[str(_CODE.parent / "lightning_modules")],
        artifacts={"model": str(candidate.folder)},
        signature=ModelSignature(Schema([ColSpec("string", "source")]), Schema([ColSpec("string")])),
        input_example=_example(candidate.task),
        pip_requirements=[f"{name}=={version(name).split('+')[0]}" for name in _NEEDED],
        registered_model_name=candidate.name,
    )
    return str(logged.registered_model_version)


def _log_predictions(candidate: Candidate) -> str:
    """Logs the answers beside the model, not in it: who serves it need not have the test texts. Gives their URI."""
    import mlflow

    folder = f"predictions/{candidate.task}"
    mlflow.log_artifact(str(candidate.predictions), folder)
    active = mlflow.active_run()
    assert active is not None
    return f"runs:/{active.info.run_id}/{folder}/{candidate.predictions.name}"


def _example(task: str) -> Any:
    import pandas as pd  # type: ignore[import-untyped]

    record = {field: f"An example of a {field}." for field in TASKS[task].fields}
    return pd.DataFrame({"source": [TASKS[task].source_text(record)]})


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in _FILES:
        try:
            digest.update(hashlib.sha256((folder / name).read_bytes()).digest())
        except OSError as error:
            raise PipelineError(f"{folder} is not a whole model ({error}): run finetune@{folder.name}") from error
    return digest.hexdigest()


def _locked_hashes(root: Path) -> dict[str, str]:
    """DVC's MD5 of every path that dvc.lock knows."""
    stages = locked_stages(root).values()
    return {entry["path"]: entry.get("md5", "") for s in stages for entry in [*s.get("deps", []), *s.get("outs", [])]}


def _read(path: Path, stage: str) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PipelineError(f"{path} cannot be read ({error}): run the stage {stage} again") from error
    return content


def register_all(params: Params, root: Path) -> dict[str, dict[str, str | None]]:
    """Registers the model of every task; task → what became of it. Raises PipelineError where MLflow fails."""
    found = candidates(params, root)
    client, uri = connect(root, "registered"), tracking_uri(root)
    import mlflow

    from stages.tracking import stage_run

    settings = {"tracking": params.tracking.model_dump(), "promotion": params.promotion.model_dump()}
    with stage_run("register", params=settings) as run:
        if run.run_id is None:
            raise silent(uri, "registered")
        results = {}
        alone = file_lock(root / LOCK)
        with mlflow_errors("register a model"), alone, mlflow.start_run(run_id=run.run_id):
            for candidate in progress(found, name="register", unit="model"):
                results[candidate.task] = register(candidate, client, params)
        for result in results.values():
            result["url"] = f"{ui_url(uri)}/#/models/{result['model']}/versions/{result['version']}"
    return results


def main(_: argparse.Namespace) -> None:
    """Registers the models and says which is what."""
    results = register_all(load_params(), Path.cwd())
    with whole_file(REGISTERED) as file:
        file.write_text(json.dumps(results, indent=2) + "\n")
    for result in results.values():
        print(
            f"{result['model']} version {result['version']}: {result['alias'] or result['state']} ({result['reason']})"
        )


if __name__ == "__main__":
    run_stage(main, stage_parser(__doc__))
