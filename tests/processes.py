"""Waiting for what other processes do, whether one has ended, ending it, and a port for a new one."""

import os
import random
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import psutil

T = TypeVar("T")


def still_works(pid: int) -> bool:
    """Where no init fetches their exit status, orphans that have ended stay as zombies."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def eventually(get: Callable[[], T], seconds: float = 300.0, every: float = 0.1) -> T:
    """The first true value of `get`, asked for that often."""
    deadline = time.monotonic() + seconds
    while not (value := get()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(every)
    return value


def end_group(leader: int) -> None:
    """Kills a process that leads a group of its own, and all of that group, also where the leader has ended."""
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def free_port() -> int:
    """One below those that the system gives to outgoing connections, of which one might take it meanwhile."""
    while True:
        port = random.SystemRandom().randrange(25_000, 32_000)
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port
