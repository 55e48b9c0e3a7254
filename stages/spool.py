"""A run's journal on disk: what a stage wants to tell MLflow is written here first and sent from here.

A spool is a folder in `.pipeline/spool/`: `journal.jsonl` holds one operation a line, `state.json` how far it was sent,
`files/` copies of artifacts. Its owner holds a lock on it, so a spool whose owner died can be told and taken over; who
sends it holds another one. Appending costs about 20 µs and survives the death of the process (not of the machine:
nothing is forced to the disk).
"""

import fcntl
import json
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from stages.warning import warn

SPOOLS = Path(".pipeline/spool")
LOCK, SENDING = "lock", "sending"  # names of files in a spool
Operation = dict[str, Any]


class Journal:
    """One run's journal, as it is read and sent."""

    def __init__(self, folder: Path) -> None:
        """Raises ValueError where the state is damaged."""
        self.folder = folder
        self.state: dict[str, Any] = {}
        self.read_state()

    def read_state(self) -> None:
        """Takes over what another process has sent. Raises ValueError where the state is damaged."""
        state = self.folder / "state.json"
        self.state = _read(state.read_bytes(), state) if state.exists() else {}

    def save_state(self, **changes: Any) -> None:
        """Remembers `changes`, whole or not at all."""
        self.state.update(changes)
        unfinished = self.folder / "state.unfinished"
        unfinished.write_text(json.dumps(self.state))
        unfinished.replace(self.folder / "state.json")

    def unsent(self) -> list[tuple[Operation, int]]:
        """The operations not sent yet, as `operations` gives them."""
        return self.operations(int(self.state.get("sent", 0)))

    @contextmanager
    def sending(self) -> Iterator[None]:
        """No other process sends it in the block, nor takes it over."""
        with (self.folder / SENDING).open("a") as lock:  # not `file_lock`, which makes a folder that is gone again
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.read_state()
            yield

    def operations(self, offset: int = 0) -> list[tuple[Operation, int]]:
        """The operations after `offset` bytes, but for half a line at the end, each with the journal's length after it.

        Raises OSError where there is no journal, ValueError where it is damaged.
        """
        journal = self.folder / "journal.jsonl"
        with journal.open("rb") as file:
            file.seek(offset)
            lines = file.read().split(b"\n")[:-1]
        operations = []
        for line in lines:
            offset += len(line) + 1
            operations.append((_read(line, journal), offset))
        return operations


class Spool(Journal):
    """One run's journal, written by this process and held by it until `release` or `remove`."""

    def __init__(self, folder: Path, lock: IO[str]) -> None:
        super().__init__(folder)
        self._lock = lock
        self._writing = threading.Lock()
        journal = folder / "journal.jsonl"
        whole = journal.read_bytes().rfind(b"\n") + 1 if journal.exists() else 0
        self._journal = journal.open("ab")
        self._journal.truncate(whole)  # a process that died within a line left half of it
        if self.state.get("sent", 0) > whole:  # a machine that died lost more: what comes now is not sent yet
            self.save_state(sent=whole)

    @classmethod
    def create(cls, root: Path) -> "Spool":
        """A new, empty spool under `root`; names sort by age."""
        unfinished = (
            root / SPOOLS / uuid.uuid4().hex
        )  # a name that `abandoned` does not look at, until the lock is held
        unfinished.mkdir(parents=True)
        spool = cls(unfinished, _locked(unfinished / LOCK))
        spool.folder = unfinished.rename(root / SPOOLS / f"{time.time_ns()}-{unfinished.name[:8]}")
        return spool

    @classmethod
    def take(cls, folder: Path, wait: float = 0.0) -> "Spool | None":
        """The spool in `folder`, or None where there is none or a living process holds it for `wait` seconds more.

        A damaged one counts as none: it is set aside, and a line says where it is.
        """
        if not folder.match(f"{SPOOLS}/*-*"):
            return None
        until = time.monotonic() + wait
        while True:
            try:
                lock = _taken_over(folder)
                if _is_whole(folder):
                    return cls(folder, lock)
                lock.close()
                return None
            except BlockingIOError:
                if time.monotonic() >= until:
                    return None
                time.sleep(0.1)
            except OSError:
                return None

    @classmethod
    def abandoned(cls, root: Path) -> "Iterator[Spool]":
        """Takes, oldest first, every spool under `root` whose owner is gone."""
        for folder in sorted((root / SPOOLS).glob("*-*")):
            spool = cls.take(folder)
            if spool is not None:
                yield spool

    @classmethod
    def waiting(cls, root: Path) -> int:
        """How many spools under `root`, also those of living processes, hold something unsent."""
        count = 0
        for folder in (root / SPOOLS).glob("*-*"):
            with suppress(FileNotFoundError):  # its owner has sent everything just now
                count += (folder / "journal.jsonl").stat().st_size > _sent(folder)
        return count

    @property
    def root(self) -> Path:
        """The folder that it was created under."""
        return self.folder.parents[len(SPOOLS.parts)]

    @property
    def written(self) -> int:
        """When the journal last grew, in milliseconds of the Unix epoch."""
        return int((self.folder / "journal.jsonl").stat().st_mtime * 1000)

    def append(self, operation: Operation) -> None:
        """Writes one operation down."""
        line = json.dumps(operation, separators=(",", ":")).encode() + b"\n"
        with self._writing:
            self._journal.write(line)
            self._journal.flush()

    def keep_file(self, path: Path) -> Path:
        """Copies a file or folder into the spool and returns its path within it."""
        inside = Path("files") / uuid.uuid4().hex[:8] / path.name
        target = self.folder / inside
        target.parent.mkdir(parents=True)
        if path.is_dir():
            shutil.copytree(path, target)
        else:
            shutil.copyfile(path, target)
        return inside

    def release(self) -> None:
        """Lets another process take the spool over."""
        with suppress(OSError):  # a full disk cannot take the rest of a line
            self._journal.close()
        self._lock.close()

    def remove(self) -> None:
        """Deletes the spool, once all of it was sent."""
        gone = self.folder.with_name(uuid.uuid4().hex)  # a name that nobody looks at: whose lock is deleted looks dead
        with suppress(OSError):
            self.folder = self.folder.rename(gone)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.release()


def _read(text: bytes, path: Path) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path.name}: {found!r} is not an object")
    return found


def _is_whole(folder: Path) -> bool:
    """Whether all of a spool can be read; else it gets a name that nobody looks at."""
    try:
        Journal(folder).operations()
    except ValueError as error:
        aside = folder.rename(folder.with_name(f"{folder.name.replace('-', '.')}.damaged"))
        warn(f"what a run noted for MLflow is damaged ({error}) and will not be sent: it is kept in {aside}")
        return False
    return True


def _sent(folder: Path) -> int:
    """Bytes of the journal that were sent; of a damaged spool nobody knows, and it waits."""
    try:
        return int(Journal(folder).state.get("sent", 0))
    except ValueError:
        return -1


def _taken_over(folder: Path) -> IO[str]:
    """The owner's lock. Raises OSError as well where a process still sends what a dead owner asked it to."""
    lock = _locked(folder / LOCK)
    try:
        _locked(folder / SENDING).close()
    except OSError:
        lock.close()
        raise
    return lock


def _locked(path: Path) -> IO[str]:
    """Takes a lock. Raises OSError where a living process holds it, or there is no such folder."""
    lock = path.open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise
    return lock


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Only one process (of those that see this file system) at a time goes on from here."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
