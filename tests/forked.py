"""Processes forked from one that has imported torch, Lightning and MLflow: they start those seconds sooner.

Forks of one server share its hash seed; whoever compares two runs starts one of them afresh.
"""

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parent
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["stages.training", "mlflow", "tiny"])  # no stage: it is run as __main__


class Forked:
    """A process that calls a function; what `subprocess.Popen` knows of one, as far as tests ask for it."""

    def __init__(
        self, folder: Path, environment: dict[str, str], log: Path, call: Callable[..., None], *arguments: Any
    ) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", f"{TESTS.parent}{os.pathsep}{TESTS}")  # whatever the current folder is
            patch.setenv("OMP_NUM_THREADS", "1")
            forkserver.ensure_running()
        self._process = FORKS.Process(target=_begin, args=(folder, environment, log, call, *arguments))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid
        with suppress(ProcessLookupError):  # it has ended
            while os.getpgid(self.pid) != self.pid:
                time.sleep(0.001)

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
        return self._process.exitcode

    def terminate(self) -> None:
        self._process.terminate()


def run_module(name: str, *arguments: str) -> None:
    """As `python -m name arguments` does."""
    sys.argv = [name, *arguments]
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def _begin(folder: Path, environment: dict[str, str], log: Path, call: Callable[..., None], *arguments: Any) -> None:
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    with log.open("a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    try:
        call(*arguments)
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out
