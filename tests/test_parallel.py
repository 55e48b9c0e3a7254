"""Work on all cores: in order, counted, failures at once, no worker left behind."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from processes import still_works
from tqdm import tqdm

from lightning_modules.errors import PipelineError
from stages.parallel import count, local_results, ordered_results

ROOT = Path(__file__).parent.parent


def square(number: int) -> int:
    count(2)
    time.sleep(0.02 * (number % 3))
    return number * number


def fail_on_one(number: int) -> int:
    if number == 1:
        raise PipelineError("job 1 is wrong")
    time.sleep(60)
    return number


def die(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.parametrize("workers", [1, 2])
def test_results_are_in_order_and_counted(workers: int) -> None:
    bar: tqdm[Any] = tqdm(file=io.StringIO())
    assert list(ordered_results(square, range(20), workers, bar)) == [number * number for number in range(20)]
    assert bar.n == 40


def test_one_worker_is_this_process_and_starts_no_other() -> None:
    program = (
        "import psutil\nfrom tqdm import tqdm\nfrom stages.parallel import ordered_results\n"
        "assert list(ordered_results(abs, range(3), 1, tqdm(disable=True))) == [0, 1, 2]\n"
        "print(psutil.Process().children(recursive=True))\n"
    )
    told = subprocess.run([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    assert told.stdout.strip() == "[]"


def test_what_must_stay_on_this_machine_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", "nowhere")
    assert list(local_results(square, range(4), 2, tqdm(disable=True))) == [0, 1, 4, 9]
    with pytest.raises(PipelineError, match="DASK_SCHEDULER_ADDRESS=nowhere: no scheduler can be reached"):
        list(ordered_results(square, range(4), 2, tqdm(disable=True)))


def test_a_failure_does_not_wait_for_the_jobs_before_it() -> None:
    started = time.monotonic()
    with pytest.raises(PipelineError, match="job 1 is wrong"):
        list(ordered_results(fail_on_one, range(2), 2, tqdm(disable=True)))
    assert time.monotonic() - started < 50  # the other job sleeps for 60 s
    assert [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())] == []


def test_a_killed_worker_is_one_clear_line() -> None:
    with pytest.raises(PipelineError, match="a worker process was killed, likely for lack of memory"):
        list(ordered_results(die, range(4), 2, tqdm(disable=True)))


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import os, time\nfrom tqdm import tqdm\nfrom stages.parallel import ordered_results\n"
        "def work(number):\n    os.write(1, b'working\\n')\n    time.sleep(600)\n"  # in one piece: two write at once
        "if __name__ == '__main__':\n    list(ordered_results(work, range(2), 2, tqdm(disable=True)))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout
        try:
            assert [parent.stdout.readline() for _ in range(2)] == [b"working\n"] * 2
            workers = psutil.Process(parent.pid).children(recursive=True)
            assert len(workers) >= 2
        finally:
            parent.kill()
        deadline = time.monotonic() + 30
        while any(still_works(worker.pid) for worker in workers):
            assert time.monotonic() < deadline
            time.sleep(0.1)
