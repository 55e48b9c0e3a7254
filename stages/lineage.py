"""What a stage is made from, as facts for MLflow: git commit, DVC's hashes of its dependencies, who started it.

DVC's own machinery hashes the dependencies (during a stage `dvc.lock` still holds those of the run before), with its
cache of hashes: 0.3 s, and longer only for files it has not seen. Nothing here raises: a missing fact is left out.
"""

import getpass
import hashlib
import json
import os
import platform
import re
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from stages.dvc_lock import PAUSE, locked_stages

LATEST = Path(".pipeline/latest")  # STAGE.json: the run that made what the stage's outputs are now
_PREFECT_KEY = "prefect-"
# The programs of stages that are not named after theirs.
_PROGRAMS = {"fetch_local": "stages/fetch.py", "scratch": "stages/finetune.py", "sweep": "flows/sweep.py"}
_DIGEST_CHARACTERS = 36  # of MLflow; as long as an MD5 and DVC's ".dir"


@dataclass(frozen=True)
class PipelineRun:
    """What holds the stages of one pipeline run together: a key, and the name a person reads."""

    key: str
    name: str


@dataclass(frozen=True)
class MadeBy:
    """A stage's run: where it is in MLflow's pages, and what it made."""

    link: str
    outputs: tuple[Path, ...]


@dataclass
class Lineage:
    """The facts of one stage's run."""

    tags: dict[str, str] = field(default_factory=dict)
    dependencies: dict[str, str] = field(default_factory=dict)  # path → DVC's MD5 (a folder's ends in .dir)
    datasets: list[dict[str, str]] = field(default_factory=list)  # arguments of mlflow.entities.Dataset


def lineage(stage: str, inputs: list[Path], root: Path) -> Lineage:
    """The facts of a run of `stage` that reads `inputs`; paths are relative to `root`, the repository."""
    facts, name = Lineage(), stage.split("@")[0]
    facts.tags = {
        "pipeline.stage": stage,
        "dvc.stage": os.environ.get("DVC_STAGE", ""),
        "sweep.trial": os.environ.get("PIPELINE_TRIAL", ""),
        "host": platform.node(),
        "mlflow.user": _user(),
        "mlflow.source.type": "LOCAL",
        "mlflow.source.name": _PROGRAMS.get(name, f"stages/{name}.py"),
        **git_facts(root),
        **_prefect_facts(),
    }
    params = root / "params.yaml"
    if params.exists():
        facts.tags["params.md5"] = hashlib.md5(params.read_bytes(), usedforsecurity=False).hexdigest()
    facts.dependencies = dvc_dependencies(stage, inputs, root)
    makers = _makers(facts.dependencies, root)
    for path, md5 in facts.dependencies.items():
        facts.tags[f"dvc.dep.{re.sub(r'[^A-Za-z0-9_./ -]', '_', path)}"] = md5
        if not path.endswith(".py"):
            facts.datasets.append(_dataset(path, md5, facts.tags, makers.get(path)))
    facts.tags["mlflow.note.content"] = _note(facts, makers)
    facts.tags = {key: value for key, value in facts.tags.items() if value}
    return facts


def pipeline_run() -> PipelineRun | None:
    """PIPELINE_RUN, else the `dvc` that started this process; None for a stage started by hand."""
    key = os.environ.get("PIPELINE_RUN")
    now = f"{datetime.now():%Y-%m-%d %H:%M}"
    if key:
        sweep = os.environ.get("PIPELINE_SWEEP")
        return PipelineRun(re.sub(r"[^A-Za-z0-9_.-]", "_", key), f"sweep {sweep}" if sweep else f"pipeline {now}")
    import psutil

    for parent in reversed(psutil.Process().parents()):  # the outermost one
        try:
            words = {Path(word).name for word in parent.cmdline()[:4]}
        except psutil.Error:
            continue
        if "dvc" in words:
            return PipelineRun(f"dvc-{platform.node()}-{parent.pid}-{int(parent.create_time())}", f"dvc repro {now}")
    return None


def git_facts(root: Path) -> dict[str, str]:
    """Commit, branch, whether tracked files differ from it, and the remote without credentials."""
    commit = _git(root, "rev-parse", "HEAD")
    if not commit:
        return {}
    return {
        "mlflow.source.git.commit": commit,
        "mlflow.source.git.branch": _git(root, "rev-parse", "--abbrev-ref", "HEAD"),
        "mlflow.source.git.repoURL": without_credentials(_git(root, "remote", "get-url", "origin")),
        "git.dirty": "true" if _git(root, "status", "--porcelain", "--untracked-files=no") else "false",
    }


def dvc_dependencies(stage: str, inputs: list[Path], root: Path) -> dict[str, str]:
    """DVC's hash of every dependency of `stage`, and of `inputs` where DVC does not know the stage."""
    hashes: dict[str, str | None] = {}
    with suppress(Exception):  # no DVC repository, a stage it does not know: the run is as good without these facts
        hashes = _hashes(os.environ.get("DVC_STAGE") or stage, root)
    for path in inputs:
        if path.is_file() and str(path) not in hashes:
            with path.open("rb") as file:
                hashes[str(path)] = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    return {path: str(md5) for path, md5 in hashes.items() if md5}


def _hashes(stage: str, root: Path) -> dict[str, str | None]:
    from dvc.repo import Repo
    from dvc.utils.serialize import ParseError
    from dvc.utils.strictyaml import YAMLValidationError

    for _ in range(3):
        try:
            with Repo(str(root)) as repo:
                known = repo.stage.get_target(stage)
                dependencies = [dependency for dependency in known.deps if hasattr(dependency, "get_hash")]
                return {d.def_path: d.get_hash().value for d in dependencies if not hasattr(d, "params") and d.exists}
        except (ParseError, YAMLValidationError):  # another stage's DVC is writing dvc.lock
            time.sleep(PAUSE)
    return {}


def remember_latest(stage: str, root: Path, dependencies: dict[str, str], run_id: str, experiment_id: str) -> None:
    """Notes that the outputs of `stage` were made by this run, from `dependencies`."""
    path = root / LATEST / f"{stage}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    fact = {"run_id": run_id, "experiment_id": experiment_id, "dependencies": dependencies}
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(fact, indent=2) + "\n")
    unfinished.replace(path)


def without_credentials(url: str) -> str:
    """`url` without user, password, query and fragment, where tokens hide; a path or scp-like address is left alone."""
    parts = urlsplit(url)
    if not parts.netloc:
        return url
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def current_runs(root: Path) -> dict[str, MadeBy]:
    """The run that made the present outputs of each stage, where it is known.

    A run is named only if it read what `dvc.lock` says the stage read: after a `dvc checkout` of other data it did not.
    """
    runs: dict[str, MadeBy] = {}
    for stage, lock in locked_stages(root).items():
        latest = root / LATEST / f"{stage}.json"
        if not latest.exists():
            continue
        made = json.loads(latest.read_text())
        read = {dependency["path"]: dependency.get("md5") for dependency in lock.get("deps", [])}
        if all(made["dependencies"].get(path) == md5 for path, md5 in read.items()):
            link = f"#/experiments/{made['experiment_id']}/runs/{made['run_id']}"
            runs[stage] = MadeBy(link, tuple(Path(output["path"]) for output in lock.get("outs", [])))
    return runs


def _makers(dependencies: dict[str, str], root: Path) -> dict[str, list[tuple[str, str]]]:
    """For each dependency the stages that made it, each with the address of the run in MLflow's pages."""
    makers: dict[str, list[tuple[str, str]]] = {}
    for stage, run in current_runs(root).items():
        for path in dependencies:
            if any(Path(path).is_relative_to(output) or output.is_relative_to(path) for output in run.outputs):
                makers.setdefault(path, []).append((stage, run.link))
    return makers


def _dataset(path: str, md5: str, tags: dict[str, str], makers: list[tuple[str, str]] | None) -> dict[str, str]:
    source = {
        "path": path,
        "md5": md5,
        "git_commit": tags.get("mlflow.source.git.commit", ""),
        "made_by": [stage for stage, _ in makers or []],
        "find_the_commit": f"git log -S {md5} --oneline -- dvc.lock",
        "get_it": f"dvc get . {path} --rev COMMIT",
    }
    profile = {"dvc_md5": md5}
    digest = md5[:_DIGEST_CHARACTERS]
    return {
        "name": path,
        "digest": digest,
        "source_type": "dvc",
        "source": json.dumps(source),
        "profile": json.dumps(profile),
    }


def _note(facts: Lineage, makers: dict[str, list[tuple[str, str]]]) -> str:
    """The run's description, in Markdown: where a reader of a score clicks his way to the data."""
    lines = []
    if "prefect.url" in facts.tags:
        lines.append(f"Started by [this Prefect flow run]({facts.tags['prefect.url']}).\n")
    if facts.dependencies:
        lines += ["Made from:\n", "| what | MD5 in DVC | made by |", "| --- | --- | --- |"]
        for path, md5 in sorted(facts.dependencies.items()):
            links = ", ".join(f"[{stage}]({link})" for stage, link in makers.get(path, []))
            lines.append(f"| `{path}` | `{md5}` | {links} |")
        lines.append("\nTo have one of them again: `git log -S MD5 --oneline -- dvc.lock` finds the commit, and")
        lines.append("`dvc get . PATH --rev COMMIT` brings the bytes.")
    return "\n".join(lines)[:8000]


def _prefect_facts() -> dict[str, str]:
    key = os.environ.get("PIPELINE_RUN", "")
    return {
        "prefect.flow_run_id": key.removeprefix(_PREFECT_KEY) if key.startswith(_PREFECT_KEY) else "",
        "prefect.url": without_credentials(os.environ.get("PIPELINE_FLOW_URL", "")),
    }


def _git(root: Path, *words: str) -> str:
    try:
        command = ["git", *words]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=10, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return ""
