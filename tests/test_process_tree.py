import os
import sys
import time
from pathlib import Path

from processes import still_works

from flows.process_tree import ProcessTree

ORPHAN = """
import subprocess, sys
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)
print(child.pid, flush=True)
"""


def start(tmp_path: Path, code: str) -> ProcessTree:
    return ProcessTree([sys.executable, "-c", code], tmp_path, os.environ)


def test_an_orphan_in_a_session_of_its_own_is_found_and_killed(tmp_path: Path) -> None:
    tree = start(tmp_path, ORPHAN)
    assert tree.leader.stdout is not None
    orphan = int(tree.leader.stdout.readline())
    tree.leader.wait()
    assert [member.pid for member in tree.members()] == [orphan]
    tree.kill()
    assert tree.members() == []
    assert not still_works(orphan)


def test_the_leaders_exit_status_survives_the_kill(tmp_path: Path) -> None:
    tree = start(tmp_path, "import time; time.sleep(600)")
    tree.kill()
    assert tree.leader.wait() == -9


def test_terminate_spares_the_leader_and_signals_each_once(tmp_path: Path) -> None:
    tree = start(tmp_path, "import subprocess, time; subprocess.run(['sleep', '600']); time.sleep(600)")
    deadline = time.monotonic() + 30
    while len(tree.members()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert tree.terminate(spare_leader=True)
    while len(tree.members()) > 1:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert [member.pid for member in tree.members()] == [tree.leader.pid]
    tree.terminate(spare_leader=False)
    assert tree.leader.wait(timeout=30) == -15
    assert not tree.terminate(spare_leader=False)
