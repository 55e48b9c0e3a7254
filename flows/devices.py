"""The machine's devices, lent to stages: GPUs where there are any, else CPU cores. Costs one call of nvidia-smi."""

import itertools
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def visible_gpus() -> list[str]:
    """Names of the GPUs this process may use, as CUDA_VISIBLE_DEVICES lists them; none on a CPU machine."""
    if (listed := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in listed.split(",") if name.strip() not in ("", "-1")]
    if (program := shutil.which("nvidia-smi")) is None:
        return []
    listing = subprocess.run([program, "--list-gpus"], capture_output=True, text=True, check=False)  # noqa: S603
    count = sum(line.startswith("GPU ") for line in listing.stdout.splitlines()) if listing.returncode == 0 else 0
    return [str(index) for index in range(count)]


SETTLE_SECONDS = 0.2  # stages that become ready at the same moment ask within this time, and are compared


class DevicePool:
    """Lends devices to the most urgent stage first, and never past it: one that needs all of them is not starved."""

    def __init__(self, gpus: list[str], cores: int) -> None:
        self.gpus = bool(gpus)
        self._size = len(gpus) or max(cores, 1)
        self._free = list(gpus) if gpus else [str(core) for core in range(self._size)]
        self._queue: list[tuple[int, int]] = []  # (less urgent, later): the smallest is next
        self._arrivals = itertools.count()
        self._changed = threading.Condition()

    @classmethod
    def of_this_machine(cls) -> "DevicePool":
        """The GPUs that may be used, else the cores that may be used."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return cls(visible_gpus(), cores)

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
                self._free.extend(names or [])
                self._changed.notify_all()

    def environment(self, names: list[str]) -> dict[str, str]:
        """What a child that was lent these devices must see: nothing on a CPU machine, its GPUs on any other."""
        return {"CUDA_VISIBLE_DEVICES": ",".join(names)} if self.gpus else {}

    def _take(self, wanted: int, gave_up: Callable[[], bool], urgency: int) -> list[str] | None:
        ticket = (-urgency, next(self._arrivals))
        with self._changed:
            self._queue.append(ticket)
        time.sleep(SETTLE_SECONDS)
        with self._changed:
            try:
                while not (min(self._queue) == ticket and len(self._free) >= wanted):
                    if gave_up():
                        return None
                    self._changed.wait(timeout=0.5)
                taken, self._free = sorted(self._free[:wanted], key=_by_number), self._free[wanted:]
                return taken
            finally:
                self._queue.remove(ticket)
                self._changed.notify_all()


def _by_number(name: str) -> tuple[int, str]:
    return (int(name), name) if name.isdigit() else (0, name)
