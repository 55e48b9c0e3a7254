"""A function over many jobs on all cores: results in the order of the jobs, few of them waiting, none left behind.

Workers are started afresh (`spawn`): the parent has threads (MLflow's, Arrow's), which a fork does not survive. Each
costs about 0.5 s to start, and memory for what it imports; one alone is this process itself. They end when their parent
ends, however it ends.

Where the environment has DASK_SCHEDULER_ADDRESS, the jobs go to that Dask cluster instead (`cluster`): the result is
the same, so it is no key of params.yaml.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from tqdm import tqdm

from lightning_modules.errors import PipelineError

Job = TypeVar("Job")
Result = TypeVar("Result")
_JOBS_AHEAD = 3  # a worker: enough to keep it busy, few enough that results do not pile up
_LOOK_SECONDS = 0.2  # between two looks at the workers' counter
_tell: Callable[[int], object] | None = None  # in a worker: takes the units of work that a job counts


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def count(units: int) -> None:
    """Called in a job: moves the progress bar on by so many units."""
    if _tell is not None:
        _tell(units)


def tell_counts(tell: Callable[[int], object]) -> None:
    """Called in a worker: from now on `tell` is given what jobs count."""
    global _tell
    _tell = tell


def ordered_results(
    function: Callable[[Job], Result], jobs: Iterable[Job], workers: int, bar: "tqdm[Any]"
) -> Generator[Result, None, None]:
    """`function(job)` for each job, in order; `bar` follows what the jobs `count`.

    A job must be picklable, and may be done twice: on a cluster a machine may be lost half-way. Raises what a job
    raises, and PipelineError where a worker was killed. Close it if it is not read to its end.
    """
    address = os.environ.get("DASK_SCHEDULER_ADDRESS")
    if not address:
        return local_results(function, jobs, workers, bar)
    from stages.cluster import cluster_results  # Dask: 0.6 s

    return cluster_results(function, jobs, bar, address)


def local_results(
    function: Callable[[Job], Result], jobs: Iterable[Job], workers: int, bar: "tqdm[Any]"
) -> Generator[Result, None, None]:
    """`ordered_results` on this machine in any case: for jobs that need its devices or its environment."""
    if workers == 1:
        tell_counts(bar.update)
        yield from map(function, jobs)
        return
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    lifeline, held_end = context.Pipe(duplex=False)
    executor = ProcessPoolExecutor(workers, context, _start_worker, (lifeline, counter))
    try:
        waiting: deque[Future[Result]] = deque()
        for job in jobs:
            waiting.append(executor.submit(function, job))
            if len(waiting) > _JOBS_AHEAD * workers:
                yield _first(waiting, counter, bar)
        while waiting:
            yield _first(waiting, counter, bar)
        executor.shutdown()
    except BrokenProcessPool:
        raise PipelineError("a worker process was killed, likely for lack of memory: free some, then rerun") from None
    finally:
        held_end.close()
        executor.shutdown(cancel_futures=True)


def _first(waiting: "deque[Future[Result]]", counter: Any, bar: "tqdm[Any]") -> Result:
    """Waits for the first job's result; a failure of any job comes out at once."""
    while not waiting[0].done():
        wait([waiting[0]], timeout=_LOOK_SECONDS)
        bar.update(counter.value - bar.n)
        for future in waiting:
            if future.done() and future.exception():
                return future.result()
    bar.update(counter.value - bar.n)
    return waiting.popleft().result()


def _start_worker(lifeline: Connection, counter: Any) -> None:
    tell_counts(partial(_add, counter))
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread a worker: there is a worker a core
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends the workers
    threading.Thread(target=_end_with_parent, args=(lifeline,), daemon=True).start()


def _add(counter: Any, units: int) -> None:
    with counter.get_lock():
        counter.value += units


def _end_with_parent(lifeline: Connection) -> None:
    try:
        lifeline.recv()  # nothing ever comes: this returns when the parent's end closes
    except (EOFError, OSError):
        os._exit(1)
