"""One run at a time in a workspace, and params.yaml changed for the time of a run. Never imports Prefect.

Costs a scan of the process table, some 20 ms, and where something is overridden a YAML round trip, some 50 ms.
"""

import difflib
import fcntl
import io
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from pydantic import BaseModel

from flows.process_tree import end_survivors
from lightning_modules.errors import PipelineError
from stages.outputs import whole_file
from stages.params import Params, load_params

STATE = Path(".pipeline")
WAIT_SECONDS = 60.0  # for a run that is just ending
GRACE_SECONDS = 20.0  # for the stages of a killed run to save a checkpoint


class WorkspaceHeld(PipelineError):
    """Another run is at work in the workspace."""


@contextmanager
def workspace(
    root: Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    wait_seconds: float = WAIT_SECONDS,
    on_wait: Callable[[str], None] = lambda message: None,
) -> Iterator[int]:
    """Holds the workspace `root` for one run, with `overrides` (dotted key → value) written into params.yaml.

    There are two locks. `run` is held by this process alone: who gets it knows that no other run lives, and that stages
    still at work are those of a killed one, which are asked to end before anything starts. `lock` is inherited by the
    children that get its file descriptor, which this gives: so what cannot be ended (another user's, another machine's
    on a shared file system) is at least never joined by a second run.

    params.yaml is as it was when the block ends; if a run is killed, the next one restores it. Raises PipelineError if
    another run holds the workspace (WorkspaceHeld), for an unknown key and for a wrong value.
    """
    state = root / STATE
    state.mkdir(exist_ok=True)
    with (
        (state / "run").open("a+", encoding="utf-8") as run,
        (state / "lock").open("a+", encoding="utf-8") as lock,
    ):
        _acquire(run, wait_seconds, on_wait)
        if ended := end_survivors(root, GRACE_SECONDS):
            on_wait(f"a run before was killed; ended {ended} processes that its stages had left at work")
        _acquire(lock, wait_seconds, on_wait)
        _restore(root)
        try:
            if overrides:
                _override(root, overrides)
            check_params(root)
            yield lock.fileno()
        finally:
            _restore(root)


def check_params(root: Path) -> None:
    """Raises PipelineError if params.yaml has a wrong key or value: before any work, not hours into it."""
    if (root / "params.yaml").is_file():
        load_params(root / "params.yaml")


def overridden(text: str, overrides: Mapping[str, Any]) -> str:
    """The text of params.yaml with other values for some dotted keys; comments stay. Raises PipelineError.

    A key that its section may have is added where it is not there: `model.positions`, say.
    """
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    params = yaml.load(text)
    there = list(_dotted_keys(params))
    known = [*there, *(key for key in _possible_keys(Params) if key.rpartition(".")[0] in there)]
    for key, value in overrides.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise PipelineError(f"overrides: params.yaml has no key {key!r}{hint}")
        *path, last = key.split(".")
        table = params
        for part in path:
            table = table[part]
        table[last] = value
    out = io.StringIO()
    yaml.dump(params, out)
    return out.getvalue()


def _dotted_keys(table: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in table.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _dotted_keys(value, f"{prefix}{key}.")


def _possible_keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield f"{prefix}{name}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _possible_keys(field.annotation, f"{prefix}{name}.")


def _override(root: Path, overrides: Mapping[str, Any]) -> None:
    before = (root / "params.yaml").read_text(encoding="utf-8")
    during = overridden(before, overrides)
    for name, text in (("before", before), ("during", during)):
        with whole_file(root / STATE / f"params.{name}.yaml") as file:
            file.write_text(text, encoding="utf-8")
    with whole_file(root / "params.yaml") as file:
        file.write_text(during, encoding="utf-8")


def _restore(root: Path) -> None:
    """Puts params.yaml back, unless somebody has edited it since the run began: their text stays."""
    before, during = (root / STATE / f"params.{name}.yaml" for name in ("before", "during"))
    if before.exists() and during.exists() and during.read_bytes() == (root / "params.yaml").read_bytes():
        before.replace(root / "params.yaml")
    before.unlink(missing_ok=True)
    during.unlink(missing_ok=True)


def _acquire(lock: TextIO, wait_seconds: float, on_wait: Callable[[str], None]) -> None:
    began, told = time.monotonic(), False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = (
                f"another run (process {lock.read().strip() or 'unknown'}, or a stage it started) holds this workspace"
            )
            if time.monotonic() - began > wait_seconds:
                raise WorkspaceHeld(f"{holder}: wait for it to end, or stop it, and try again") from None
            if not told:
                told = True
                on_wait(f"{holder}; waiting up to {wait_seconds:.0f} s for it to end")
            time.sleep(0.5)
            continue
        lock.seek(0)
        lock.truncate()
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        return
