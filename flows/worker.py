"""Prefect's process worker, but one that lets its runs save: `python -m flows.worker`, as `prefect worker start`.

Prefect's own, told to end by SIGTERM or Ctrl-C, ends its runs with SIGKILL: no stage is told, and none saves. Here the
runs get SIGTERM first: each asks its stages to end, which takes them 20 s at most, and tells Prefect. Ends with 0 when
it was told to. Imports no Prefect; costs some 20 MB beside the worker.
"""

import contextlib
import signal
import subprocess
import sys
import time
from typing import NoReturn

import psutil

from lightning_modules.errors import Interrupted

RUN_SECONDS = 100.0  # for the runs to end: a container is given two minutes
WORKER_SECONDS = 15.0  # for a worker without runs
POLL_SECONDS = 0.2


def main() -> int:
    """The command line; gives the exit status."""
    for asked in (signal.SIGTERM, signal.SIGINT):
        signal.signal(asked, _stop)
    # In a session of its own: Ctrl-C is not for the worker, but for this process.
    command = [sys.executable, "-m", "prefect", "worker", "start", *sys.argv[1:]]
    worker = subprocess.Popen(command, start_new_session=True)  # noqa: S603
    try:
        return worker.wait()
    except Interrupted:
        end(worker)
        return 0


def end(worker: "subprocess.Popen[bytes]") -> None:
    """Ends a worker's runs, also one that it begins meanwhile, then it: SIGTERM, and SIGKILL where that is too late."""
    until, told = time.monotonic() + RUN_SECONDS, set[psutil.Process]()
    while (runs := _children(worker.pid)) and time.monotonic() < until:
        for run in runs - told:
            with contextlib.suppress(psutil.Error):
                run.terminate()
        told |= runs
        time.sleep(POLL_SECONDS)
    worker.terminate()
    try:
        worker.wait(WORKER_SECONDS)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()


def _children(pid: int) -> set[psutil.Process]:
    """The processes that one has started and that are at work."""
    with contextlib.suppress(psutil.Error):
        return {child for child in psutil.Process(pid).children() if child.status() != psutil.STATUS_ZOMBIE}
    return set()


def _stop(*_: object) -> NoReturn:
    for asked in (signal.SIGTERM, signal.SIGINT):
        signal.signal(asked, signal.SIG_IGN)  # once is enough
    raise Interrupted


if __name__ == "__main__":
    sys.exit(main())
