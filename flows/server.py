"""The local Prefect server: settings, start, stop. Imports no Prefect itself; a start takes 5–20 s.

All runs of a workspace that are at work at once (`make demo`, `make serve-flows`) share one server, whose database is
.pipeline/prefect; the last of them to end stops it. Each of them looks every second whether it is still there, and ends
where it is not. With PREFECT_API_URL set, that server is used, and none is started or watched.
"""

import contextlib
import fcntl
import http.client
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from flows.workspace import STATE
from lightning_modules.errors import PipelineError

HOST = "127.0.0.1"
PORT = 4200
START_SECONDS = 240.0  # two minutes were needed where six processes shared each core
STOP_SECONDS = 10.0
WATCH_SECONDS = 1.0
GONE = f"the Prefect server has ended meanwhile (see {STATE}/prefect/server.log)"


class ServerFailed(PipelineError):
    """The Prefect server has ended, or does not do its work: Prefect's threads still try, for minutes, to tell it."""


def stop_this_process() -> None:
    """SIGTERM to this process, whose server has ended; from now on Prefect asks that but once, not for a minute."""
    if prefect := sys.modules.get("prefect.settings"):
        prefect.get_current_settings().client.max_retries = 0
    logging.raiseExceptions = False  # what cannot be sent there any more is not worth a line each
    os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def prefect_server(root: Path, when_gone: Callable[[], None] = stop_this_process) -> Iterator[str]:
    """Gives the URL of the Prefect API, and sets this process's environment for it. Enter before importing Prefect.

    `when_gone` is called, in a thread of its own, if this workspace's server ends before the block does; what the block
    raises then becomes ServerFailed. Raises PipelineError if the server that PREFECT_API_URL names does not answer, or
    if none can be started.
    """
    if url := os.environ.get("PREFECT_API_URL"):
        if not answers(url):
            raise PipelineError(
                f"no Prefect server answers at PREFECT_API_URL ({url}): start it, or unset PREFECT_API_URL"
            )
        yield url
        return
    home = (root / STATE / "prefect").resolve()
    home.mkdir(parents=True, exist_ok=True)
    ours: dict[str, str] = {}  # what is set in this process's environment, and taken out again
    with (home / "starting").open("w") as starting, (home / "users").open("a") as users:
        fcntl.flock(starting, fcntl.LOCK_EX)
        fcntl.flock(users, fcntl.LOCK_SH)
        try:
            url = _running(home) or _start(home)
            ours |= {name: value for name, value in settings(home).items() if name not in os.environ}
            ours["PREFECT_API_URL"] = url
            os.environ.update(ours)
            leader = _noted(home)[1]
            fcntl.flock(starting, fcntl.LOCK_UN)
            with _watched(leader, when_gone):
                yield url
        finally:
            for name in ours:  # a later server of this process has another home
                os.environ.pop(name, None)
            fcntl.flock(starting, fcntl.LOCK_EX)
            with contextlib.suppress(BlockingIOError):  # somebody else uses it: they will stop it
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _stop(home)


@contextmanager
def _watched(leader: int, when_gone: Callable[[], None]) -> Iterator[None]:
    """Calls `when_gone` if that process ends before the block; an exception of the block is ServerFailed then."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(WATCH_SECONDS):
            if not _works(leader):
                return when_gone()

    watcher = threading.Thread(target=watch, name="prefect-server-watcher", daemon=True)
    watcher.start()
    try:
        yield
    except BaseException as error:
        if _works(leader):
            raise
        raise ServerFailed(f"{GONE}: run again; what was done is not done again") from error
    finally:
        over.set()
        watcher.join()


def answers(url: str, seconds: float = 3.0) -> bool:
    """Whether a Prefect API at `url` (…/api) says that it is healthy."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=seconds) as reply:  # noqa: S310
            return json.load(reply) is True
    except (OSError, ValueError, http.client.HTTPException):  # silent, no Prefect, or not even a web server
        return False


def settings(home: Path) -> dict[str, str]:
    """Prefect's settings for its server and for the runs that use it; what the user has set wins."""
    defaults = {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "true",
        "PREFECT_CLI_PROMPT": "false",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    }
    return {name: os.environ.get(name, value) for name, value in defaults.items()}


def _running(home: Path) -> str | None:
    """The URL of the server that this workspace has started already, if it still answers."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        url, leader = _noted(home)
        if _listens(leader, url) and answers(url):
            return url
    return None


def _noted(home: Path) -> tuple[str, int]:
    """URL and process of the server that was started last. After a restart of the machine both may be another's."""
    noted = json.loads((home / "server.json").read_text())
    return str(noted["url"]), int(noted["process"])


def _start(home: Path) -> str:
    """Starts a server on the usual port, or a free one where another program has that, perhaps since a moment ago."""
    for port in ([PORT] if _is_free(PORT) else []) + [_free_port()]:
        if url := _started_on(port, home):
            return url
    raise PipelineError(f"the Prefect server did not start: see {STATE}/prefect/server.log")


def _started_on(port: int, home: Path) -> str | None:
    """The URL of a new server; None if it has ended, or does not answer in time."""
    url = f"http://{HOST}:{port}/api"
    environment = dict(os.environ) | settings(home) | {"PREFECT_SERVER_API_HOST": HOST, "PREFECT_API_URL": url}
    environment["PREFECT_SERVER_API_PORT"] = str(port)  # where the UI, in the browser, looks for the API
    with (home / "server.log").open("w") as log:
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port)],
            env=environment,
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the flow, which still has states to report
        )
    (home / "server.json").write_text(json.dumps({"url": url, "process": process.pid}))
    deadline = time.monotonic() + START_SECONDS
    try:
        while not (_listens(process.pid, url) and answers(url)):
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                return None
            time.sleep(0.25)
    except BaseException:  # stopped: nobody else knows it as this workspace's before it listens
        process.kill()
        raise
    return url


def _works(process: int) -> bool:
    """Whether it has not ended: one that this process has started stays as a zombie then."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    return False


def _listens(leader: int, url: str) -> bool:
    """Whether the port of `url` belongs to this process or one that it started, and not to another server there."""
    port = urlsplit(url).port
    with contextlib.suppress(psutil.Error):
        server = psutil.Process(leader)
        for part in (server, *server.children(recursive=True)):
            if any(link.laddr and link.laddr.port == port for link in part.net_connections(kind="tcp")):
                return True
    return False


def _stop(home: Path) -> None:
    """SIGTERM to the server, SIGKILL to what is left of it after STOP_SECONDS."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        url, leader = _noted(home)
        (home / "server.json").unlink()
        if not _listens(leader, url):
            return  # the number belongs to another program by now
        with contextlib.suppress(psutil.Error):
            server = psutil.Process(leader)
            parts = [server, *server.children(recursive=True)]
            server.terminate()
            _, left = psutil.wait_procs(parts, timeout=STOP_SECONDS)
            for part in left:
                part.kill()


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):
            probe.bind((HOST, port))
            return True
    return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
