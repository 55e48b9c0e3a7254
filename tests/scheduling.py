"""Whole test files handed out to workers in the order of the collection, also when a worker is killed.

A worker that dies (the system kills what takes too much memory, say) is replaced, and what it had not done is done
again, the test that it was at among it: only where a second worker dies there, the test has failed. Of a file whose
tests build on one another all are done again. Uses what pytest-xdist keeps to itself; tests/test_scheduling.py tells
when that changes.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

BEGUN_ANEW = ("test_end_to_end.py", "test_pipeline.py", "test_watch.py")  # their tests build on one another


class FilesInOrder(LoadFileScheduling):
    """xdist's own waits for ever after a death: it hands out finished files, too, and nothing comes back from those."""

    def __init__(self, config: pytest.Config, log: Any) -> None:
        super().__init__(config, log)
        self.deaths: Counter[str] = Counter()  # by the test that a worker was at

    def remove_node(self, node: WorkerController) -> str | None:
        """Takes a worker out that has ended; gives the test that it died at, if it did."""
        work = self.assigned_work.pop(node)
        left = {file: tests for file, tests in work.items() if not all(tests.values())}
        if not left:
            return None
        file, tests = next(iter(left.items()))
        died_at = next(test for test, done in tests.items() if not done)
        self.deaths[died_at] += 1
        if Path(file).name in BEGUN_ANEW:
            tests.update(dict.fromkeys(tests, False))
        tests[died_at] = self.deaths[died_at] > 1
        self.workqueue.update({file: tests for file, tests in left.items() if not all(tests.values())})
        for other in self.nodes:
            self._reschedule(other)
        return died_at

    def _reschedule(self, node: WorkerController) -> None:
        """A worker begins a test when it knows the next one: it must have two, or be told that there are no more."""
        if node.shutting_down or node not in self.registered_collections:  # one that still collects asks later
            return
        while self.workqueue and self._pending_of(self.assigned_work[node]) < 2:
            self._assign_work_unit(node)
        if not self.workqueue:
            node.shutdown()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FilesInOrder:
    """Instead of what `--dist loadfile` would take."""
    return FilesInOrder(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_handlecrashitem(crashitem: str, report: pytest.TestReport, sched: FilesInOrder) -> None:
    """A worker's first death says nothing of the test that it was at, which is begun again."""
    if sched.deaths[crashitem] == 1:
        report.outcome = "skipped"
        report.longrepr = (report.location[0], 0, f"Skipped: a worker died at {crashitem}, which was begun again")
