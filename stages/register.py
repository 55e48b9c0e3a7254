"""Put the fine-tuned models in the MLflow registry: models/TASK → NAME-TASK, reports/registered.json.

A model whose score is better than the present champion's, on the same test texts and metric, becomes the alias
`champion`; any other becomes `challenger`. `mlflow models serve -m models:/NAME-TASK@champion` serves it. A model that
is there already is not registered again. Costs about 3 s a model. Without a tracking server it is an error: a model
that silently was not registered would be missed late.
"""

import argparse
import hashlib
import json
import os
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lightning_modules.errors import PipelineError
from stages.console import progress, run_stage, stage_parser
from stages.delivery import answers, tracking_uri, ui_url
from stages.lineage import LATEST, git_facts, without_credentials
from stages.outputs import whole_file
from stages.params import Params, load_params
from stages.spool import file_lock
from stages.tasks import TASKS

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
    tags: dict[str, str]


def candidates(params: Params, root: Path) -> list[Candidate]:
    """The model of every task with its scores. Raises PipelineError where one is missing."""
    table = _read(root / "reports" / "metrics.json", "report")
    commit = git_facts(root).get("mlflow.source.git.commit", "")
    lock = _locked_hashes(root)
    found = []
    for task in params.tasks:
        metric, folder = TASKS[task].primary, root / "models" / task
        try:
            scores = table[task][metric]
        except KeyError:
            raise PipelineError(f"reports/metrics.json has no {metric} of {task}: run the report stage again") from None
        evaluated = root / LATEST / f"evaluate@{task}.json"
        tags = {
            "task": task,
            "metric": metric,
            "score": repr(scores["pretrained"]),
            "score_interval": f"{scores['pretrained_low']} to {scores['pretrained_high']}",
            "gain_over_scratch": repr(scores["gain"]),
            "gain_interval": f"{scores['gain_low']} to {scores['gain_high']}",
            "sha256": _digest(folder),
            "git_commit": commit,
            "dvc_md5": lock.get(f"models/{task}", ""),
            "test_md5": lock.get(f"data/prepared/{task}/test.parquet", ""),
            "training_run": str(_read(folder / "training.json", f"finetune@{task}").get("mlflow_run_id") or ""),
            "evaluation_run": str(_read(evaluated, "evaluate")["run_id"]) if evaluated.exists() else "",
        }
        name = f"{params.tracking.registered_model}-{task}"
        found.append(Candidate(task, name, folder, scores["pretrained"], {k: v for k, v in tags.items() if v}))
    return found


def register(candidate: Candidate, client: Any) -> dict[str, str]:
    """Registers one model in MLflow's active run, where it is not there yet, and gives it its alias."""
    same = [v for v in _versions(client, candidate.name) if v.tags.get("sha256") == candidate.tags["sha256"]]
    number = str(max(int(v.version) for v in same)) if same else _log(candidate)
    for key, value in candidate.tags.items():
        client.set_model_version_tag(candidate.name, number, key, value)
    alias, reason = _alias(candidate, number, client)
    client.set_model_version_tag(candidate.name, number, "alias_reason", reason)
    if alias == "champion" and _with_alias(client, candidate.name, "challenger") == number:
        client.delete_registered_model_alias(candidate.name, "challenger")
    client.set_registered_model_alias(candidate.name, alias, number)
    return {
        "model": candidate.name,
        "version": number,
        "alias": alias,
        "reason": reason,
        "uri": f"models:/{candidate.name}@{alias}",
    }


def _alias(candidate: Candidate, number: str, client: Any) -> tuple[str, str]:
    """`champion` or `challenger`, and why."""
    champion = _with_alias(client, candidate.name, "champion")
    if champion is None:
        return "champion", "the first of its name"
    if champion == number:
        return "champion", "still the champion"
    theirs = client.get_model_version(candidate.name, champion).tags
    for key, words in (("metric", "metric"), ("test_md5", "test texts")):
        if theirs.get(key) != candidate.tags.get(key):
            return "challenger", f"not comparable with version {champion}, which was scored on other {words}"
    score = float(theirs["score"])
    if candidate.score > score:
        return "champion", f"better than version {champion}: {candidate.score:.2f} against {score:.2f}"
    return "challenger", f"not better than version {champion}: {candidate.score:.2f} against {score:.2f}"


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


def _example(task: str) -> Any:
    import pandas as pd  # type: ignore[import-untyped]

    record = {field: f"An example of a {field}." for field in TASKS[task].fields}
    return pd.DataFrame({"source": [TASKS[task].source_text(record)]})


def _versions(client: Any, name: str) -> list[Any]:
    return list(client.search_model_versions(f"name='{name}'"))


def _with_alias(client: Any, name: str, alias: str) -> str | None:
    """The version that has the alias."""
    models = client.search_registered_models(f"name='{name}'")
    number = models[0].aliases.get(alias) if models else None
    return None if number is None else str(number)


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
    from ruamel.yaml import YAML

    try:
        stages = YAML(typ="safe").load((root / "dvc.lock").read_text())["stages"].values()
    except (OSError, KeyError, TypeError):
        return {}
    return {entry["path"]: entry.get("md5", "") for s in stages for entry in [*s.get("deps", []), *s.get("outs", [])]}


def _read(path: Path, stage: str) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PipelineError(f"{path} cannot be read ({error}): run the stage {stage} again") from error
    return content


def register_all(params: Params, root: Path) -> dict[str, dict[str, str]]:
    """Registers the model of every task; task → what became of it. Raises PipelineError where MLflow fails."""
    found = candidates(params, root)
    uri = tracking_uri(root)
    silent = (
        f"MLflow at {without_credentials(uri)} does not answer, so nothing is registered: start it, and run register"
    )
    if not answers(uri):
        raise PipelineError(silent)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "120")  # an upload may take its time
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ |= {"MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
    import mlflow
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException

    from stages.tracking import stage_run

    with stage_run("register", params={"tracking": params.tracking.model_dump()}) as run:
        if run.run_id is None:
            raise PipelineError(silent)
        mlflow.set_tracking_uri(uri)
        results = {}
        try:
            with file_lock(root / ".pipeline" / "registry.lock"), mlflow.start_run(run_id=run.run_id):
                for candidate in progress(found, name="register", unit="model"):
                    results[candidate.task] = register(candidate, mlflow.MlflowClient())
        except (MlflowException, RequestException) as error:
            raise PipelineError(f"MLflow could not register a model: {str(error).splitlines()[0]}") from error
        for result in results.values():
            result["url"] = f"{ui_url(uri)}/#/models/{result['model']}/versions/{result['version']}"
    return results


def main(_: argparse.Namespace) -> None:
    """Registers the models and says which is what."""
    results = register_all(load_params(), Path.cwd())
    with whole_file(REGISTERED) as file:
        file.write_text(json.dumps(results, indent=2) + "\n")
    for result in results.values():
        print(f"{result['model']} version {result['version']}: {result['alias']} ({result['reason']})")


if __name__ == "__main__":
    run_stage(main, stage_parser(__doc__))
