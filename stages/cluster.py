"""Jobs on a Dask cluster: results in order, few of them waiting, a lost machine costs its part and no more.

Taken in place of local processes where DASK_SCHEDULER_ADDRESS is set (docs/scaling.md). Jobs are done by
`cluster_worker`; here they are sent, and done again where the machine that had one went away. Dask costs 0.6 s to
import, 0.02 s to connect, and some ms a job: a job should take a second or more.
"""

import asyncio
import os
import pickle
import secrets
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import spawn
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, TypeVar

import cloudpickle  # type: ignore[import-untyped]
from distributed import Client, Security, get_worker
from distributed.comm.core import connect
from distributed.scheduler import KilledWorker
from tqdm import tqdm

from lightning_modules.errors import PipelineError
from stages import cluster_worker
from stages.cluster_worker import Jobs, Outcome, Sender, versions

Job = TypeVar("Job")
Result = TypeVar("Result")
ADDRESS = "DASK_SCHEDULER_ADDRESS"
_ANSWER_SECONDS = 15  # for a scheduler to answer
_WORKER_SECONDS = 60.0  # without any worker
_THREADS_SECONDS = 5.0  # between two looks at how many workers there are
_LOOK_SECONDS = 0.5  # between two movements of the bar
_JOBS_AHEAD = 3  # a thread of the cluster; their results wait here for the first
_TRIES = 3  # of a job whose process is killed
_MOST_SHOWN = 200  # characters of a job in an error


def cluster_results(
    function: Callable[[Job], Result], jobs: Iterable[Job], bar: "tqdm[Any]", address: str
) -> Generator[Result, None, None]:
    """As `parallel.ordered_results`, on the cluster of the scheduler at `address`.

    Raises what a job raises, and PipelineError where the scheduler does not answer or is lost, no worker is there, a
    worker does not see this folder or has other versions, or a job's process is killed time and again.
    """
    with _connected(address) as client, _sender() as sender:
        run = _Run(client, sender, function, bar, address)
        try:
            for number, job in enumerate(jobs):
                run.send(number, job)
                while run.full():
                    yield run.first()
            while run.waiting:
                yield run.first()
        finally:
            run.end()


@dataclass
class _Sent:
    """A job on its way."""

    number: int
    job: Any
    future: Any
    tries: int = 1
    done: bool = False
    result: Any = None


class _Run:
    """The jobs of one call of `cluster_results`."""

    def __init__(self, client: Any, sender: Sender, function: Any, bar: "tqdm[Any]", address: str) -> None:
        self.waiting: deque[_Sent] = deque()
        self._client, self._token, self._address = client, sender.token, address
        self._function, self._bar = function, bar
        self._moved: dict[int, int] = {}  # of the jobs at work: units counted, as far as was told
        self._finished = 0  # units of the jobs that are done
        self._news = threading.Event()  # a job is done
        self._threads, self._looked_at, self._workers_at = 0, -_THREADS_SECONDS, time.monotonic()
        client.subscribe_topic(self._token, self._hear)
        client.register_plugin(Jobs(sender), name=self._token)

    def send(self, number: int, job: Any) -> None:
        """Sends a job."""
        self.waiting.append(_Sent(number, job, self._submit(number, job, 1)))

    def full(self) -> bool:
        """Whether so many jobs wait that the first should be taken before another is sent."""
        self._look_at_workers()
        return len(self.waiting) > _JOBS_AHEAD * max(1, self._threads)

    def first(self) -> Any:
        """Waits for the first job's result; a failure of any job comes out at once."""
        while True:
            for sent in self.waiting:
                self._take(sent)
            moved = sum(self._moved.get(sent.number, 0) for sent in self.waiting if not sent.done)
            self._bar.update(self._finished + moved - self._bar.n)
            if self.waiting[0].done:
                return self.waiting.popleft().result
            self._look_at_workers()
            self._news.wait(_LOOK_SECONDS)
            self._news.clear()

    def end(self) -> None:
        """Takes back what is not done; the processes of this run are gone afterwards on all workers that answer."""
        if self._client.status == "running":
            with suppress(OSError, CancelledError):
                self._client.cancel([sent.future for sent in self.waiting])
                self._client.unregister_worker_plugin(self._token)

    def _submit(self, number: int, job: Any, tries: int) -> Any:
        token, pickled = self._token, pickle.dumps((self._function, job))

        def do() -> Outcome:  # defined here, and so sent by value: the scheduler need not have our code
            jobs: Any = get_worker().plugins[token]
            outcome: Outcome = jobs.run(number, pickled)
            return outcome

        future = self._client.submit(do, key=f"{token}-{number}-{tries}", pure=False)
        future.add_done_callback(lambda _: self._news.set())
        return future

    def _take(self, sent: _Sent) -> None:
        """Takes a job's outcome, if it is there. Sends it again where its process was killed."""
        if sent.done or not sent.future.done():
            return
        try:
            kind, units, data = sent.future.result()
        except KilledWorker:
            kind, units, data = "killed", 0, b""
            sent.tries = _TRIES  # Dask has tried
        except CancelledError:
            raise PipelineError(f"{ADDRESS}: the scheduler at {self._address} is gone: start it, then rerun") from None
        if kind == "result":
            sent.done, sent.result, sent.future = True, pickle.loads(data), None  # noqa: S301 - from our own workers
            self._moved.pop(sent.number, None)
            self._finished += units
        elif kind == "refused":
            raise PipelineError(data.decode())
        elif kind == "error":
            raise pickle.loads(data)  # noqa: S301 - as above
        elif sent.tries == _TRIES:
            job = str(sent.job)[:_MOST_SHOWN]
            raise PipelineError(f"a job was killed on every worker that tried it, likely for lack of memory: {job}")
        else:
            sent.tries += 1
            sent.future = self._submit(sent.number, sent.job, sent.tries)

    def _hear(self, event: tuple[float, list[int]]) -> None:
        number, units = event[1]
        self._moved[number] = max(units, self._moved.get(number, 0))  # a second try begins again

    def _look_at_workers(self) -> None:
        now = time.monotonic()
        if now - self._looked_at < _THREADS_SECONDS:
            return
        with suppress(OSError):  # that the scheduler is gone is seen by the jobs
            self._threads, self._looked_at = sum(self._client.nthreads().values()), now
        if self._threads:
            self._workers_at = now
        elif now - self._workers_at > _WORKER_SECONDS:
            raise PipelineError(
                f"{ADDRESS}: the scheduler at {self._address} has had no worker for {_WORKER_SECONDS:.0f} s: "
                f"start some with `dask worker {self._address}`"
            )


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    cloudpickle.register_pickle_by_value(cluster_worker)
    try:
        asyncio.run(_reach(address))  # a Client that fails in its beginnings takes 30 s to end
        client: Any = Client(address, timeout=_ANSWER_SECONDS, set_as_default=False)  # type: ignore[no-untyped-call]
    except (OSError, ValueError, TypeError, RuntimeError) as error:  # no answer; no address; no certificate for it
        advice = "start one (`dask scheduler`), or unset the variable to work on this machine alone"
        raise PipelineError(f"{ADDRESS}={address}: no scheduler can be reached ({error}): {advice}") from None
    try:
        yield client
    finally:
        client.close()


async def _reach(address: str) -> None:
    security: Any = Security()  # type: ignore[no-untyped-call]
    reach: Any = connect
    comm = await reach(address, timeout=_ANSWER_SECONDS, **security.get_connection_args("client"))
    comm.abort()


@contextmanager
def _sender() -> Iterator[Sender]:
    """This process, with a file in its working directory that workers must see."""
    folder, token = Path.cwd(), f"pipeline-{secrets.token_hex(8)}"
    (folder / ".pipeline").mkdir(exist_ok=True)
    preparation = spawn.get_preparation_data("worker")
    del preparation["authkey"]  # a secret, and the workers' processes have no use for it
    ours = [path for path in preparation["sys_path"] if not path.startswith((sys.prefix, sys.base_prefix))]
    with NamedTemporaryFile("w", dir=folder / ".pipeline", prefix="seen-by-workers-") as probe:
        probe.write(token)
        probe.flush()
        os.fsync(probe.fileno())
        code = str(Path(__file__).parents[1])
        yield Sender(token, str(folder), probe.name, code, versions(), {**preparation, "sys_path": ours})
