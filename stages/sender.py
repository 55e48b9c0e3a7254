"""Sends what stages log from a process of its own, so that none of them loads MLflow: 5 of the 7 s that one takes.

The first stage that finds no such process starts it, those that come after find it at work, and a quarter of a minute
after the last it ends by itself. It is asked through a Unix socket in `.pipeline/senders`, one JSON line for another;
its environment is that of the stage that started it, and stages with another one, other credentials for one, have
another process. Where the file system has no sockets a stage sends by itself. It holds some 250 MB.
"""

import argparse
import hashlib
import json
import os
import platform
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from socket import SocketIO
from typing import Any

from lightning_modules.errors import PipelineError
from stages.spool import Journal
from stages.tracking_store import database, prepare_store, store_folder

SENDERS = "senders"  # a folder beside the store, or in `.pipeline`
PRINTED = ".log"  # beside the socket: what the process printed
IDLE = 15.0  # seconds without a stage after which it ends
START_SECONDS = 60.0  # that Python may take to start, on a busy machine
ANSWER_SECONDS = 60.0  # that a stage waits for it, at most: it may have been stopped, or send something large
# Variables that differ from stage to stage, or that torch sets: nothing that MLflow looks at.
_OF_ONE_STAGE = ("CUDA_", "DVC", "MALLOC_", "OMP_", "PIPELINE", "PREFECT", "PYTORCH_", "TORCH")
_OF_A_SHELL = {"_", "SHLVL", "PWD", "OLDPWD"}


class Sender:
    """What a stage has of that process: it sends as a `Delivery` does."""

    def __init__(self, uri: str, root: Path) -> None:
        """Raises OSError where the process can be neither found nor started."""
        self.uri = uri
        self.root = root
        self.refused: list[str] = []  # what the server will never take, for a warning
        self.trouble = ""  # why it took nothing the last time
        self._asking = threading.Lock()
        self._stream: SocketIO | None = _connected(uri, root)

    def send(self, spool: Journal) -> bool:
        """Has it send what is unsent. False where the server, or the process, takes nothing now (`trouble`)."""
        told = self._ask(str(spool.folder))
        spool.read_state()
        self.refused += told.get("refused", [])
        self.trouble = told.get("trouble", "")
        return not self.trouble

    def load(self) -> dict[str, float]:
        """The machine's load since the last call; nothing where the process cannot tell."""
        load: dict[str, float] = self._ask(None).get("load", {})
        return load

    def _ask(self, folder: str | None) -> dict[str, Any]:
        with self._asking:
            for _ in range(3):  # it may have been killed since the last time, and seem to listen while it dies
                try:
                    self._stream = self._stream or _connected(self.uri, self.root)
                except OSError:
                    break
                try:
                    self._stream.write(json.dumps(folder).encode() + b"\n")
                    if line := self._stream.readline():
                        told: dict[str, Any] = json.loads(line)
                        return told
                except TimeoutError:
                    self._stream = None  # where an answer to this may still come, and be taken for that to the next
                    silence = f"the process that sends to it has not answered for {ANSWER_SECONDS:.0f} s"
                    return {"trouble": f"cannot be told: {silence}"}
                except OSError:
                    pass
                self._stream = None
            said = _last_words(_address(self.uri, self.root)[0])
            return {"trouble": f"cannot be told: the process that sends to it does not live{said}"}


def _address(uri: str, root: Path) -> tuple[Path, dict[str, str]]:
    """The socket of the process that sends to `uri` with this environment, and what that process has of it."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in _OF_A_SHELL and not name.startswith(_OF_ONE_STAGE)
    }
    facts = json.dumps([platform.node(), os.getuid(), sorted(environment.items())])
    return store_folder(uri, root) / SENDERS / hashlib.sha256(facts.encode()).hexdigest()[:16], environment


def _connected(uri: str, root: Path) -> SocketIO:
    address, environment = _address(uri, root)
    address.parent.mkdir(parents=True, exist_ok=True)
    environment["MLFLOW_TRACKING_URI"] = uri
    package = str(Path(__file__).parents[1])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (package, environment.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "stages.sender", address.name]
    printed_to = address.with_suffix(PRINTED)
    for _ in range(2):  # another one may end just now
        if connection := _connection(address):
            return connection
        printed_to.touch(0o600)
        with suppress(subprocess.TimeoutExpired), printed_to.open("a") as printed:
            subprocess.run(  # noqa: S603
                command, cwd=address.parents[1], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=printed, start_new_session=True, timeout=START_SECONDS, check=False,
            )  # fmt: skip
    if connection := _connection(address):
        return connection
    raise OSError(f"no process sends to MLflow at {address}")


def _last_words(address: Path) -> str:
    with suppress(OSError):
        if lines := address.with_suffix(PRINTED).read_text(errors="replace").splitlines():
            return f" (its last words: {lines[-1]})"
    return ""


def _connection(address: Path) -> SocketIO | None:
    with socket.socket(socket.AF_UNIX) as connecting:
        connecting.settimeout(ANSWER_SECONDS)
        try:
            connecting.connect(os.path.relpath(address))  # relative: an address has room for some 100 characters
        except OSError:
            return None
        return connecting.makefile("rwb", buffering=0)  # which keeps the connection open


def _listener(address: Path) -> socket.socket | None:
    """Where stages connect to; None where another process listens there. Raises OSError where there are no sockets."""
    if connection := _connection(address):
        connection.close()
        return None
    address.unlink(missing_ok=True)  # of one that was killed
    listener = socket.socket(socket.AF_UNIX)
    before = os.umask(0o077)  # it is for this user alone
    try:
        listener.bind(os.path.relpath(address))
    finally:
        os.umask(before)
    listener.listen()
    return listener


def _serve(listener: socket.socket, address: Path, uri: str) -> None:
    """Answers stages, each in a thread, until there have been none for a while."""
    import mlflow  # noqa: F401  before any thread: stages wait meanwhile

    ours, root = _identity(address), address.parents[2]
    with suppress(PipelineError):  # which each stage is told
        prepare_store(uri, root)
    store = database(uri)
    known = _identity(store)
    at_work: list[threading.Thread] = []
    listener.settimeout(IDLE)
    while True:
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            at_work = [thread for thread in at_work if thread.is_alive()]
            if at_work:
                continue
            break
        known = known or _identity(store)
        if _identity(store) != known:  # MLflow would go on with a database that was deleted; a new process does not
            connection.close()
            break
        at_work.append(threading.Thread(target=_answer, args=(connection, uri, root), daemon=True))
        at_work[-1].start()
    if _identity(address) == ours:
        address.unlink()
        address.with_suffix(PRINTED).unlink(missing_ok=True)
    listener.close()
    for thread in at_work:
        thread.join()


def _identity(path: Path) -> tuple[int, int] | None:
    """What a file is known by as long as it exists."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _answer(connection: socket.socket, uri: str, root: Path) -> None:
    """Does what one stage asks for until it ends: a spool's folder is sent, `null` is for the machine's load."""
    from stages.delivery import Delivery
    from stages.refusals import trouble

    delivery: Delivery | None = None
    with connection, connection.makefile("rb") as requests:
        for line in requests:
            folder = json.loads(line)
            try:
                delivery = delivery or Delivery(uri, root)
                if folder is None:
                    told: dict[str, Any] = {"load": delivery.load()}
                else:
                    answered = delivery.send(Journal(Path(folder)))
                    told = {"trouble": "" if answered else delivery.trouble, "refused": delivery.refused[:]}
                    delivery.refused.clear()
            except Exception as error:  # of a wrong address, a full disk: said by the stage
                told = {"trouble": trouble(error)}
            try:
                connection.sendall(json.dumps(told).encode() + b"\n")
            except OSError:  # the stage was killed
                return


def main() -> None:
    """Starts listening, goes on in the background, and serves there."""
    parser = argparse.ArgumentParser(prog="python -m stages.sender", description=__doc__)
    parser.add_argument("name", help="of the socket in `senders` in the current folder")
    address = Path(SENDERS, parser.parse_args().name)
    listener = _listener(address)
    if listener is None:
        os._exit(0)
    with suppress(OSError):  # started by hand, it prints to a terminal
        os.ftruncate(sys.stderr.fileno(), 0)  # what another one printed that was killed
    if os.fork():  # a stage waits until it can ask, and no longer
        os._exit(0)
    _serve(listener, address.absolute(), os.environ["MLFLOW_TRACKING_URI"])


if __name__ == "__main__":
    main()
