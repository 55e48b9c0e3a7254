"""Which sources have changed since they were last fetched: the question that the watch asks. Never imports Prefect.

Files and folders of sources.local are DVC's to judge, by content; a data set of the hub has changed where the branch or
tag that params.yaml names stands for another commit than the one in dvc.lock. Costs DVC's look, about 0.7 s where
nothing changed, and a request for each source of the hub.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.graph import read_plan
from flows.workspace import workspace
from stages.dvc_lock import locked_stages
from stages.params import load_params
from stages.params_data import HubSource

QUIET_SECONDS = 60.0  # a file that was written to since may still be
HUB_SECONDS = 10.0
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Changes:
    """What a look at the sources has found."""

    stages: tuple[str, ...]  # of dvc.yaml, whose source has changed
    unfinished: tuple[Path, ...]  # files among them that may still be written to
    revisions: dict[str, str]  # overrides of params.yaml: the commit that a branch or tag of the hub stands for now
    remarks: tuple[str, ...]


def look_at_sources(root: Path, overrides: Mapping[str, Any], now: float) -> Changes:
    """Looks at all sources of `root`/params.yaml under `overrides`; `now` is the time in seconds.

    A hub that does not answer is a remark: its sources count as they were fetched last. Raises PipelineError as
    `workspace` and `read_plan` do.
    """
    with workspace(root, overrides, wait_seconds=0.0):
        sources = load_params(root / "params.yaml").sources
    revisions: dict[str, str] = {}
    remarks = []
    for name, source in sources.remote.items():
        if isinstance(source, HubSource):
            commit, remark = _newest(root, name, source)
            revisions |= {f"sources.remote.{name}.revision": commit} if commit else {}
            remarks += [remark] if remark else []
    paths = {f"fetch_local@{name}": root / source.path for name, source in sources.local.items()}
    stages = [*(f"fetch@{name}" for name in sources.remote), *paths]
    with workspace(root, {**overrides, **revisions}, wait_seconds=0.0):
        stale = read_plan(root, stages).stale if stages else frozenset()
    files = [file for stage in sorted(stale & paths.keys()) for file in _files(paths[stage])]
    unfinished = tuple(file for file in files if abs(now - _written(file)) < QUIET_SECONDS)
    return Changes(tuple(sorted(stale)), unfinished, revisions, tuple(remarks))


def _newest(root: Path, name: str, source: HubSource) -> tuple[str | None, str | None]:
    """The commit to fetch, where params.yaml names a branch or a tag; and what there is to say.

    A commit in params.yaml is kept: it was pinned so that runs can be repeated.
    """
    from huggingface_hub import HfApi

    pinned = bool(_COMMIT.fullmatch(source.revision))
    try:
        found = HfApi().dataset_info(source.path, revision=None if pinned else source.revision, timeout=HUB_SECONDS)
    except Exception as error:  # the hub's client raises dozens of unrelated classes
        reason = (str(error).strip().splitlines() or [""])[0]
        said = f"{type(error).__name__}: {reason}"
        remark = f"sources.remote.{name}: the hub does not tell the commit of {source.path} ({said})"
        return None if pinned else _fetched(root, name), remark
    if not pinned:
        return found.sha, None
    newer = f"sources.remote.{name}.revision pins {source.revision}; the newest commit of {source.path} is {found.sha}"
    return None, newer if found.sha != source.revision else None


def _fetched(root: Path, name: str) -> str | None:
    """The revision that dvc.lock says was fetched last."""
    try:
        fetched = locked_stages(root)[f"fetch@{name}"]
        return str(fetched["params"]["params.yaml"][f"sources.remote.{name}"]["revision"])
    except (KeyError, TypeError):
        return None


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]


def _written(file: Path) -> float:
    """When a file was last written to; long ago where it is gone by now."""
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0
