import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from processes import eventually, still_works

from flows.process_tree import ProcessTree, environment

ORPHAN = """
import subprocess, sys
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)
print(child.pid, flush=True)
"""


Start = Callable[[str], ProcessTree]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a tree of a Python process; what is left of it at the end is killed."""
    trees: list[ProcessTree] = []

    def make(code: str) -> ProcessTree:
        trees.append(ProcessTree([sys.executable, "-c", code], tmp_path, os.environ))
        return trees[-1]

    yield make
    for tree in trees:
        tree.kill()


def test_an_orphan_in_a_session_of_its_own_is_found_and_killed(start: Start) -> None:
    tree = start(ORPHAN)
    assert tree.leader.stdout is not None
    orphan = int(tree.leader.stdout.readline())
    tree.leader.wait()
    assert [member.pid for member in tree.members()] == [orphan]
    tree.kill()
    assert tree.members() == []
    assert not still_works(orphan)


def test_a_process_has_its_environment_from_its_first_moment() -> None:
    for number in range(300):  # of a hundred, one to three are met while the kernel still sets them up
        with subprocess.Popen(["sleep", "600"], env={**os.environ, "NUMBER": str(number)}) as child:
            found = environment(psutil.Process(child.pid))
            child.kill()
            assert found.get("NUMBER") == str(number)


def test_one_that_was_given_no_environment_has_none() -> None:
    with subprocess.Popen(["sleep", "600"], env={}) as bare:
        eventually(lambda: psutil.Process(bare.pid).cmdline() == ["sleep", "600"])
        found = environment(psutil.Process(bare.pid))
        bare.kill()
        assert found == {}


def test_the_leaders_exit_status_survives_the_kill(start: Start) -> None:
    tree = start("import time; time.sleep(600)")
    tree.kill()
    assert tree.leader.wait() == -9


def test_terminate_spares_the_leader_and_signals_each_once(start: Start) -> None:
    tree = start("import subprocess, time; subprocess.run(['sleep', '600']); time.sleep(600)")
    eventually(lambda: len(tree.members()) > 1)
    assert tree.terminate(spare_leader=True)
    eventually(lambda: len(tree.members()) == 1)
    assert [member.pid for member in tree.members()] == [tree.leader.pid]
    tree.terminate(spare_leader=False)
    assert tree.leader.wait(timeout=30) == -15
    assert not tree.terminate(spare_leader=False)
