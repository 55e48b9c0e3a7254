"""Waits for what a run has asked to stop. Importing it imports Prefect."""

import concurrent.futures
from collections.abc import Callable, Iterable
from typing import Any

from prefect.exceptions import TerminationSignal


def wait_until_stopped(futures: Iterable[Any], kill: Callable[[], None]) -> None:
    """Waits until all of Prefect's futures are done; Ctrl-C, pressed again, takes what time of grace is left.

    SIGTERM does not: when a run is cancelled, its worker sends one, and the run may have asked the server and begun to
    stop before that.
    """
    pending = [future.wrapped_future for future in futures]
    while True:
        try:
            concurrent.futures.wait(pending)
        except TerminationSignal:
            continue
        except BaseException:
            kill()
            raise
        return
