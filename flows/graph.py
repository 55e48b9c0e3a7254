"""The stage graph as DVC reads it from dvc.yaml, and which stages are stale. Never imports Prefect.

Costs 0.2 s for the graph (DVC's import included) and, where nothing changed, about 0.5 s for the staleness check.
"""

import difflib
import graphlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from flows.workspace import WorkspaceHeld
from lightning_modules.disk import writing
from lightning_modules.errors import PipelineError

if TYPE_CHECKING:
    from dvc.repo import Repo


@dataclass(frozen=True)
class Stage:
    """One stage of dvc.yaml, with what its `meta` says about running it."""

    name: str  # DVC's address: `prepare`, `finetune@translation`
    description: str
    upstream: tuple[str, ...]  # names of the stages whose outputs it reads
    retries: int  # how often it may be tried again
    timeout_seconds: float | None  # None: as long as it takes
    devices: int | None  # how many it occupies; None: all of them


@dataclass(frozen=True)
class Plan:
    """The stages of a run, upstream first, and those of them that DVC finds changed."""

    stages: dict[str, Stage]
    stale: frozenset[str]

    def stages_to_come(self, name: str) -> int:
        """How many stages stand in the longest chain that waits for this one: what holds most up is to run first."""
        waiting = [other for other, stage in self.stages.items() if name in stage.upstream]
        return max((1 + self.stages_to_come(other) for other in waiting), default=0)


def read_plan(root: Path, targets: list[str] | None = None) -> Plan:
    """Reads `root`/dvc.yaml; with `targets`, only these stages and all they need.

    A stage downstream of a stale one is not itself called stale: whether it has to run shows when the other has run.
    Raises PipelineError for a dvc.yaml that DVC refuses, an unknown target, a full disk, and, as WorkspaceHeld, when
    another DVC command is at work.
    """
    from dvc.exceptions import DvcException
    from dvc.lock import LockError

    if not (root / "dvc.yaml").is_file():
        raise PipelineError(f"no dvc.yaml in {root}: run this in the project's root folder")
    try:
        repo = _open_repo(root)
        by_name = {_name(stage, root): stage for stage in repo.index.stages if stage.cmd}
        stages = _select(_ordered(repo, by_name, root), targets)
        with repo.lock:
            _forget_the_dead(repo)
            stale = frozenset(name for name in stages if by_name[name].changed())
    except LockError as error:
        who = _line(error).partition(" If there are no processes")[0]  # DVC would have them delete the file
        raise WorkspaceHeld(
            f"another dvc command is at work in this folder; try again when it has ended ({who})"
        ) from error
    except DvcException as error:
        missing = "" if (root / "params.yaml").exists() else "; params.yaml does not exist: restore the file"
        raise PipelineError(f"dvc.yaml: {_line(error)}{missing}") from error
    return Plan(stages, stale)


def _forget_the_dead(repo: "Repo") -> None:
    """Clears DVC's list of who reads and writes what of killed processes that nobody has reaped yet.

    DVC takes these zombies for alive, and where the first process reaps none (a container without an init), for ever.
    DVC writes the list in place: one that a full disk has cut is forgotten, or DVC would refuse all work until somebody
    deletes it. Raises PipelineError where the disk is full.
    """
    from dvc.rwlock import RWLOCK_FILE, RWLockFileCorruptedError, RWLockFileFormatError, _edit_rwlock

    def alive(holder: dict[str, Any]) -> bool:
        try:
            return psutil.Process(holder["pid"]).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    file, hardlink = Path(repo.tmp_dir) / RWLOCK_FILE, repo.config["core"].get("hardlink_lock", False)
    try:
        with writing(file), _edit_rwlock(repo.tmp_dir, repo.fs, hardlink) as holders:
            holders["write"] = {path: holder for path, holder in holders["write"].items() if alive(holder)}
            kept = {path: list(filter(alive, readers)) for path, readers in holders["read"].items()}
            holders["read"] = {path: readers for path, readers in kept.items() if readers}
    except (RWLockFileCorruptedError, RWLockFileFormatError):
        file.unlink()


def read_outputs(root: Path) -> list[Path]:
    """The files and folders that the stages of `root`/dvc.yaml write. Raises PipelineError."""
    from dvc.exceptions import DvcException

    try:
        return [Path(out.fs_path) for stage in _open_repo(root).index.stages if stage.cmd for out in stage.outs]
    except DvcException as error:
        raise PipelineError(f"dvc.yaml: {_line(error)}") from error


def _open_repo(root: Path) -> "Repo":
    """DVC's view of `root`, set up first where it is not: in an archive without git, or a folder without .dvc.

    DVC is told to be silent: its bars would tear the display of the stages, and its errors come as exceptions.
    """
    for name in ("dvc", "dvc_data", "dvc_objects"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    from dvc.config import Config
    from dvc.repo import Repo
    from dvc.scm import SCMError

    if not (root / ".dvc").is_dir():
        return Repo.init(str(root), no_scm=not (root / ".git").exists())
    try:
        return Repo(str(root))
    except SCMError:  # .dvc/config came along, git did not
        with Config(dvc_dir=str(root / ".dvc"), validate=False).edit("local") as local:
            local.setdefault("core", {})["no_scm"] = True
        return Repo(str(root))


def _ordered(repo: "Repo", by_name: dict[str, Any], root: Path) -> dict[str, Stage]:
    """All stages that have a command, upstream first, else in the order of dvc.yaml."""
    edges = repo.index.graph
    stages = {
        name: _stage(name, stage, tuple(sorted(_name(up, root) for up in edges.successors(stage) if up.cmd)))
        for name, stage in by_name.items()
    }
    order = graphlib.TopologicalSorter({name: stage.upstream for name, stage in stages.items()}).static_order()
    return {name: stages[name] for name in order}


def _name(stage: Any, root: Path) -> str:
    """DVC's address of a stage, as seen from `root`: DVC's own is relative to this process's folder."""
    file = Path(stage.path).relative_to(root.resolve())
    return str(stage.name) if file == Path("dvc.yaml") else f"{file}:{stage.name}"


def _stage(name: str, stage: Any, upstream: tuple[str, ...]) -> Stage:
    """Reads one DVC stage's `meta: {retries, timeout_minutes, devices}`; each has a default."""
    meta = stage.meta or {}
    retries, minutes, devices = meta.get("retries", 0), meta.get("timeout_minutes"), meta.get("devices", 1)
    for key, value, allowed in (
        ("retries", retries, _whole(retries)),
        ("timeout_minutes", minutes, minutes is None or (isinstance(minutes, int | float) and minutes > 0)),
        ("devices", devices, devices == "all" or _whole(devices)),
    ):
        if not allowed:
            raise PipelineError(
                f"dvc.yaml: stage {name}: meta.{key} is {value!r}; it must be a number"
                + (" or all" if key == "devices" else "")
            )
    return Stage(
        name=name,
        description=stage.desc or "",
        upstream=upstream,
        retries=retries,
        timeout_seconds=None if minutes is None else 60.0 * minutes,
        devices=None if devices == "all" else devices,
    )


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _select(stages: dict[str, Stage], targets: list[str] | None) -> dict[str, Stage]:
    """The targets and everything upstream of them. `finetune` means every `finetune@…`."""
    if not targets:
        return stages
    wanted: set[str] = set()
    for target in targets:
        matches = {name for name in stages if name == target or name.startswith(f"{target}@")}
        if not matches:
            near = difflib.get_close_matches(target, [*stages, *(name.partition("@")[0] for name in stages)], n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(stages)}"
            raise PipelineError(f"targets: dvc.yaml has no stage {target!r}{hint}")
        wanted |= matches
    for name in reversed(stages):  # downstream first, so that what is added here is seen later in the loop
        if name in wanted:
            wanted.update(stages[name].upstream)
    return {name: stage for name, stage in stages.items() if name in wanted}


def _line(error: BaseException) -> str:
    """An exception of DVC, and what caused it, in one line."""
    parts = [str(error), *([str(error.__cause__)] if error.__cause__ else [])]
    return " ".join(": ".join(parts).split())
