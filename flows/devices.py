"""The machine's devices, lent to stages: GPUs where there are any, else CPU cores. Costs two calls of nvidia-smi.

A GPU is lent to one stage of all runs on the machine at a time: runs in other workspaces, too, take the lock of its
file in the folder for temporary files, which ends with the process that holds it, however that ends.
"""

import fcntl
import itertools
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

SETTLE_SECONDS = 0.2  # stages that become ready at the same moment ask within this time, and are compared


def visible_gpus() -> list[str]:
    """Names of the GPUs this process may use, as CUDA_VISIBLE_DEVICES lists them; none on a CPU machine."""
    if (listed := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in listed.split(",") if name.strip() not in ("", "-1")]
    return [str(index) for index in range(len(_gpu_uuids()))]


def gpu_locks(gpus: list[str]) -> dict[str, Path]:
    """The lock file of each GPU: named by its UUID, so that 0 and GPU-1a2b… are known to be the same one."""
    uuids = _gpu_uuids() if gpus else []
    return {gpu: Path(tempfile.gettempdir()) / f"pipeline-{_whole_name(gpu, uuids)}.lock" for gpu in gpus}


def _gpu_uuids() -> list[str]:
    """By index; none where there is no nvidia-smi, or it fails."""
    if (program := shutil.which("nvidia-smi")) is None:
        return []
    listing = subprocess.run([program, "--list-gpus"], capture_output=True, text=True, check=False)  # noqa: S603
    if listing.returncode != 0:
        return []
    lines = [line for line in listing.stdout.splitlines() if line.startswith("GPU ")]
    found = [re.search(r"UUID: ([\w-]+)", line) for line in lines]
    return [match[1] if match else f"GPU-{index}" for index, match in enumerate(found)]


def _whole_name(gpu: str, uuids: list[str]) -> str:
    if gpu.isdecimal():
        return uuids[int(gpu)] if int(gpu) < len(uuids) else f"GPU-{gpu}"
    whole = next((uuid for uuid in uuids if uuid.startswith(gpu)), gpu)  # CUDA takes the beginning of a UUID, too
    return whole.replace("/", "-")  # of old names of parts of a GPU: MIG-GPU-…/1/0


class DevicePool:
    """Lends devices to the most urgent stage first, and never past it: one that needs all of them is not starved.

    Among the runs of several processes it is first come, first served.
    """

    def __init__(self, gpus: list[str], cores: int, locks: Mapping[str, Path] | None = None) -> None:
        """`locks`: files by GPU; who has the lock of one has the GPU, on the whole machine."""
        self.gpus = bool(gpus)
        self._size = len(gpus) or max(cores, 1)
        self._free = list(gpus) if gpus else [str(core) for core in range(self._size)]
        self._locks = locks or {}
        self._held: dict[str, int] = {}  # file descriptors of the locks
        self._queue: list[tuple[int, int]] = []  # (less urgent, later): the smallest is next
        self._arrivals = itertools.count()
        self._changed = threading.Condition()

    @classmethod
    def of_this_machine(cls) -> "DevicePool":
        """The GPUs that may be used, else the cores that may be used."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        gpus = visible_gpus()
        return cls(gpus, cores, gpu_locks(gpus))

    @contextmanager
    def lend(self, count: int | None, gave_up: Callable[[], bool], urgency: int = 0) -> Iterator[list[str] | None]:
        """Waits for `count` devices (None: all; more than there are: all) and gives their names until the block ends.

        Of those that wait the most urgent is next, then the one that asked first. Gives None, without devices, as soon
        as `gave_up()` is true.
        """
        wanted = self._size if count is None else min(count, self._size)
        names = self._take(wanted, gave_up, urgency) if wanted else []
        try:
            yield names
        finally:
            with self._changed:
                self._unlock(names or [])
                self._free.extend(names or [])
                self._changed.notify_all()

    def environment(self, names: list[str]) -> dict[str, str]:
        """What a child that was lent these devices must see: nothing on a CPU machine, its GPUs on any other."""
        return {"CUDA_VISIBLE_DEVICES": ",".join(names)} if self.gpus else {}

    def held(self, names: list[str]) -> tuple[int, ...]:
        """The locks of these devices: a child that inherits them keeps the devices while it lives."""
        return tuple(self._held[name] for name in names if name in self._held)

    def _take(self, wanted: int, gave_up: Callable[[], bool], urgency: int) -> list[str] | None:
        ticket = (-urgency, next(self._arrivals))
        with self._changed:
            self._queue.append(ticket)
        time.sleep(SETTLE_SECONDS)
        with self._changed:
            try:
                while not (min(self._queue) == ticket and (taken := self._lock_some(wanted))):
                    if gave_up():
                        return None
                    self._changed.wait(timeout=0.5)
                self._free = [name for name in self._free if name not in taken]
                return sorted(taken, key=_by_number)
            finally:
                self._queue.remove(ticket)
                self._changed.notify_all()

    def _lock_some(self, wanted: int) -> list[str]:
        """So many free devices, locked; none where there are too few: what waits holds nothing that others need."""
        taken: list[str] = []
        if len(self._free) >= wanted:
            for name in self._free:
                if len(taken) < wanted and self._lock(name):
                    taken.append(name)
            if len(taken) < wanted:
                self._unlock(taken)
                return []
        return taken

    def _lock(self, name: str) -> bool:
        if name not in self._locks:
            return True
        descriptor = _open_for_all(self._locks[name])
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        self._held[name] = descriptor
        return True

    def _unlock(self, names: list[str]) -> None:
        for name in names:
            if name in self._held:
                os.close(self._held.pop(name))


def _open_for_all(file: Path) -> int:
    """A file that every user may lock, never through a link that somebody has laid."""
    try:  # Linux lets nobody open another's file in a folder for all with O_CREAT
        return os.open(file, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CREAT, 0o644)
        os.fchmod(descriptor, 0o644)  # whatever this user's umask takes away
        return descriptor


def _by_number(name: str) -> tuple[int, str]:
    return (int(name), name) if name.isdigit() else (0, name)
