"""A Dask scheduler and workers as real processes on this machine, which share a folder with the test and no more."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from processes import eventually

ALONE = ("unshare", "--mount", "--map-root-user")  # a machine's own view of the file system


@contextmanager
def process(command: list[str], log: Path, **changes: str) -> Iterator[psutil.Popen]:
    """A process and its descendants, started where none of our code is; killed at the end."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("DASK_", "PYTHONPATH"))}
    environment |= changes
    with log.open("wb") as out:
        started = psutil.Popen(command, cwd="/", env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        yield started
    finally:
        family = [*started.children(recursive=True), started] if started.is_running() else []
        for member in family:
            member.kill()
        psutil.wait_procs(family, timeout=30)


@contextmanager
def scheduler(folder: Path, *options: str, **environment: str) -> Iterator[tuple[str, psutil.Popen]]:
    """A scheduler without workers: its address and its process."""
    told = folder / "scheduler.json"
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0"]
    command += ["--dashboard-address", "127.0.0.1:0", "--no-dashboard", "--scheduler-file", str(told)]
    command += options
    with process(command, folder / "scheduler.log", **environment) as started:
        eventually(told.exists)
        yield json.loads(told.read_text())["address"], started


@contextmanager
def worker(folder: Path, address: str, name: str, hidden: Path) -> Iterator[psutil.Popen]:
    """A worker of one thread. Where the system lets it, the folder `hidden` is empty for it, as on another machine."""
    command = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--host", "127.0.0.1", "--nthreads", "1"]
    command += ["--no-dashboard", "--name", name, "--local-directory", str(folder / name)]
    if subprocess.run([*ALONE, "true"], check=False, capture_output=True).returncode == 0:
        command = [*ALONE, "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(hidden), *command]
    with process(command, folder / f"{name}.log") as started:
        eventually(lambda: "Registered to" in (folder / f"{name}.log").read_text())
        yield started
