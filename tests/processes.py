"""Waiting for what other processes do, whether one has ended, and a port for a new one."""

import socket
import time
from collections.abc import Callable
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


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
