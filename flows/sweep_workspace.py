"""Where the trials of a sweep work: copies of the project in .pipeline/sweeps/NAME, with DVC's cache in common.

The person's workspace is only read, once: what they edit while the sweep runs changes no trial. Data are linked from
the cache, not copied. A trial's folder costs some 0.1 s and the size of the code; what its stages leave, the cache has.
"""

import json
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.graph import Plan, Stage, read_outputs, read_plan
from flows.overrides import overridden
from flows.process_tree import end_survivors
from flows.run_stage import STOP_GRACE_SECONDS, child_environment
from lightning_modules.errors import PipelineError
from stages.outputs import whole_directory, whole_file
from stages.session import TAKE_WAIT
from stages.spool import SPOOLS, Spool

if TYPE_CHECKING:
    from dvc.repo import Repo

LINKS = "reflink,hardlink,symlink,copy"  # how data come from the cache: the first way that the disk can


@dataclass(frozen=True)
class Steps:
    """What a trial has to do: these stages, in this order, with these outputs of other stages."""

    stages: tuple[Stage, ...]
    needs: tuple[str, ...]

    def save(self, file: Path) -> None:
        """Writes them down, whole or not at all."""
        with whole_file(file) as path:
            path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, file: Path) -> "Steps":
        """Reads what `save` wrote."""
        written = json.loads(file.read_text(encoding="utf-8"))
        stages = (Stage(**{**stage, "upstream": tuple(stage["upstream"])}) for stage in written["stages"])
        return cls(tuple(stages), tuple(written["needs"]))


def take_copy(root: Path, copy: Path, fixed: dict[str, Any]) -> None:
    """Copies the project at `root`, without what its stages make, to `copy`, with the values `fixed` in params.yaml.

    What stages depend on and git does not know, such as a person's texts, is linked. Raises PipelineError.
    """
    from dvc.repo import Repo

    repo = Repo(str(root))
    made = read_outputs(root)
    with whole_directory(copy) as folder:
        for name in _sources(root, made):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, folder / name)
        for dep in (dep for stage in repo.index.stages for dep in stage.deps if dep.protocol == "local"):
            path = Path(dep.fs_path)
            if Path(dep.def_path).is_absolute() or any(path.is_relative_to(o) or o.is_relative_to(path) for o in made):
                continue
            if not path.is_relative_to(root.resolve()):
                raise PipelineError(
                    f"{path} is outside of the project: a sweep needs it in it, or by its absolute path"
                )
            link = folder / path.relative_to(root.resolve())
            if not link.exists():
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path)
        _set_up_dvc(repo, root, folder)
        text = (folder / "params.yaml").read_text(encoding="utf-8")
        (folder / "params.yaml").write_text(overridden(text, fixed), encoding="utf-8")


def new_workspace(copy: Path, folder: Path, values: dict[str, Any]) -> None:
    """A workspace like `copy`, with other values in params.yaml.

    One that is there already stays as it is; what a killed sweep has left at work in it is ended.
    """
    if folder.is_dir():
        end_survivors(folder, STOP_GRACE_SECONDS)
        (folder / ".dvc/tmp/rwlock").unlink(missing_ok=True)  # DVC takes who died a moment ago for alive
        return
    with whole_directory(folder) as new:
        shutil.copytree(copy, new, symlinks=True, dirs_exist_ok=True)
        text = (new / "params.yaml").read_text(encoding="utf-8")
        (new / "params.yaml").write_text(overridden(text, values), encoding="utf-8")


def read_steps(copy: Path, stage: str, keys: list[str]) -> Steps:
    """What is to be run again where values of `keys` of params.yaml change: `stage`, and of what it needs the rest."""
    from dvc.repo import Repo

    plan = read_plan(copy, [stage])
    return _steps(Repo(str(copy)), copy, plan, {name for name in plan.stages if name == stage}, keys)


def read_first_steps(root: Path, stage: str, keys: list[str]) -> Steps:
    """What has to be run once before all trials: what `stage` needs and DVC finds changed, in `root` or by `keys`."""
    from dvc.repo import Repo

    plan = read_plan(root, [stage])
    if stage not in plan.stages:
        several = ", ".join(name for name in plan.stages if name.startswith(f"{stage}@"))
        raise PipelineError(f"stage: {stage} is several stages: take one of {several}")
    above = Plan({name: one for name, one in plan.stages.items() if name != stage}, plan.stale - {stage})
    return _steps(Repo(str(root)), root, above, set(above.stale), keys)


def bring(folder: Path, needs: tuple[str, ...]) -> None:
    """Brings outputs of stages from DVC's cache, else from the remote. Raises PipelineError where neither has them."""
    if needs:
        for command in ("checkout", "pull"):
            done = subprocess.run(  # noqa: S603
                [sys.executable, "-m", "dvc", command, "--quiet", *needs],
                cwd=folder, env=child_environment({}), capture_output=True, text=True, check=False,
            )  # fmt: skip
            if done.returncode == 0:
                return
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        why = lines[0].removeprefix("ERROR: ") if lines else f"status {done.returncode}"
        raise PipelineError(
            f"{', '.join(needs)}: not in DVC's cache, nor can it be pulled ({why}): run the pipeline first"
        )


def adopt_spools(folder: Path, root: Path) -> None:
    """What an ended trial could not send to MLflow waits with what this workspace could not."""
    for path in (folder / SPOOLS).glob("*-*"):
        spool = Spool.take(path, TAKE_WAIT)  # not while a process still sends it for a stage that was killed
        if not path.exists():  # it was damaged, and told to be
            continue
        if spool:
            spool.save_state(resume_from=None)  # a folder of the trial, which this workspace may have by the same name
        (root / SPOOLS).mkdir(parents=True, exist_ok=True)
        path.rename(root / SPOOLS / path.name)
        if spool:
            spool.release()


def _steps(repo: "Repo", root: Path, plan: Plan, changed: set[str], keys: list[str]) -> Steps:
    """The stages of the plan that have `changed`, or change with one of `keys`, and all after them."""
    by_file = {str(Path(out.fs_path)): _address(one, root) for one in repo.index.stages for out in one.outs}
    found = {_address(one, root): one for one in repo.index.stages if one.cmd}
    run: list[Stage] = []
    for name, stage in plan.stages.items():
        read = [str(key) for dep in found[name].deps for key in getattr(dep, "params", ())]
        touched = any(_overlap(key, own) for key in keys for own in read)
        if name in changed or touched or any(other.name in stage.upstream for other in run):
            run.append(stage)
    names = {stage.name for stage in run}
    needs = set()
    for stage in run:
        for dep in found[stage.name].deps:
            path = Path(dep.fs_path)
            for out, maker in by_file.items():
                if maker in names:
                    continue
                if path.is_relative_to(out):
                    needs.add(str(path.relative_to(root.resolve())))
                elif Path(out).is_relative_to(path):
                    needs.add(str(Path(out).relative_to(root.resolve())))
    return Steps(tuple(run), tuple(sorted(needs)))


def _overlap(key: str, other: str) -> bool:
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


def _address(stage: Any, root: Path) -> str:
    """DVC's address of a stage, as seen from `root`."""
    file = Path(stage.path).relative_to(root.resolve())
    return str(stage.name) if file == Path("dvc.yaml") else f"{file}:{stage.name}"


def _sources(root: Path, made: list[Path]) -> list[str]:
    """The project's own files: what git knows or would, or all but what the stages make."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],  # noqa: S607
        cwd=root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    names = [name for name in listing.stdout.split("\0") if name and (root / name).is_file()]
    if listing.returncode != 0 or "dvc.yaml" not in names:
        files = (path for path in root.resolve().rglob("*") if path.is_file())
        kept = (path for path in files if not any(path.is_relative_to(out) for out in made))
        names = [str(path.relative_to(root.resolve())) for path in kept]
        names = [name for name in names if not any(part.startswith(".") for part in Path(name).parts)]
    own = (".dvc/config", ".dvc/config.local", ".dvcignore", "dvc.lock")
    return sorted(
        {*(name for name in names if "__pycache__" not in name), *filter(lambda name: (root / name).is_file(), own)}
    )


def _set_up_dvc(repo: "Repo", root: Path, folder: Path) -> None:
    """The same cache and remotes, wherever their relative paths led; no git of its own."""
    from dvc.config import Config

    (folder / ".dvc").mkdir(exist_ok=True)
    (folder / ".dvc" / "config").touch()
    remotes = {name: {"url": str(remote["url"])} for name, remote in repo.config["remote"].items()}
    with Config(dvc_dir=str(folder / ".dvc"), validate=False).edit("local") as local:
        local.setdefault("core", {})["no_scm"] = True
        local.setdefault("cache", {}).update({"dir": str(repo.cache.local_cache_dir), "type": LINKS})
        for name, remote in remotes.items():
            local.setdefault("remote", {}).setdefault(name, {}).update(remote)
