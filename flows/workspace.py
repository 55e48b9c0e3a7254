"""One run at a time in a workspace. Costs a scan of the process table, some 20 ms. Never imports Prefect."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from flows.overrides import override, take_back
from flows.process_tree import end_survivors
from lightning_modules.errors import PipelineError
from stages.params import load_params

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
    tell: Callable[[str], None] = lambda message: None,
) -> Iterator[int]:
    """Holds the workspace `root` for one run, with `overrides` (dotted key → value) written into params.yaml.

    There are two locks. `run` is held by this process alone: who gets it knows that no other run lives, and that stages
    still at work are those of a killed one, which are asked to end before anything starts. `lock` is inherited by the
    children that get its file descriptor, which this gives: so what cannot be ended (another user's, another machine's
    on a shared file system) is at least never joined by a second run.

    params.yaml is as it was when the block ends; if a run is killed, the next one restores it. What is waited for,
    ended or found edited is told. Raises PipelineError if another run holds the workspace (WorkspaceHeld), for an
    unknown key and for a wrong value.
    """
    state = root / STATE
    state.mkdir(exist_ok=True)
    with (
        (state / "run").open("a+", encoding="utf-8") as run,
        (state / "lock").open("a+", encoding="utf-8") as lock,
    ):
        _acquire(run, wait_seconds, tell)
        if ended := end_survivors(root, GRACE_SECONDS):
            tell(f"a run before was killed; ended {ended} processes that its stages had left at work")
        _acquire(lock, wait_seconds, tell)
        take_back(root, tell)
        try:
            if overrides:
                override(root, overrides)
            check_params(root)
            yield lock.fileno()
        finally:
            take_back(root, tell)


def check_params(root: Path) -> None:
    """Raises PipelineError if params.yaml has a wrong key or value: before any work, not hours into it."""
    if (root / "params.yaml").is_file():
        load_params(root / "params.yaml")


def _acquire(lock: TextIO, wait_seconds: float, tell: Callable[[str], None]) -> None:
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
                tell(f"{holder}; waiting up to {wait_seconds:.0f} s for it to end")
            time.sleep(0.5)
            continue
        lock.seek(0)
        lock.truncate()
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        return
