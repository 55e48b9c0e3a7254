"""Jobs for the tests of a cluster, in a module of their own: the processes that do them import no more than this."""

import os
import signal
import time
from pathlib import Path

from lightning_modules.errors import PipelineError
from stages.parallel import count


def square(number: int) -> tuple[int, str, int]:
    for _ in range(3):
        count(number)
    time.sleep(0.02 * (number % 3))
    return number * number, str(Path.cwd()), os.getpid()


def count_and_wait_to_be_seen(number: int) -> None:
    count(5)
    deadline = time.monotonic() + 120
    while not Path("seen").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def fail_beside_a_long_job(number: int) -> None:
    Path(f"{number}.pid").write_text(str(os.getpid()))
    if number == 0:
        time.sleep(600)
    while not Path("0.pid").exists():
        time.sleep(0.05)
    raise PipelineError("job 1 is wrong")


class UnpicklableError(Exception):
    def __init__(self, one: int, other: int) -> None:
        super().__init__(f"{one} of {other}")


def raise_unpicklable(number: int) -> None:
    raise UnpicklableError(number, 2)


def die_the_first_time(number: int) -> int:
    tried = Path(f"{number}.tried")
    if number % 2 and not tried.exists():
        tried.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def die_always(number: int) -> int:
    with Path("tries").open("a") as tries:
        tries.write("x")
    os.kill(os.getpid(), signal.SIGKILL)
    return number
