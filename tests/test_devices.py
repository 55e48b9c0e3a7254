import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from processes import eventually, still_works
from toy_project import ROOT

from flows.devices import DevicePool, gpu_locks, visible_gpus

UUIDS = ("GPU-0aaaaaaa-1111", "GPU-1bbbbbbb-2222", "GPU-2ccccccc-3333")
BORROW = """
import os, subprocess, sys
from flows.devices import DevicePool
pool = DevicePool.of_this_machine()
with pool.lend(int(sys.argv[1]) or None, lambda: len(sys.argv) > 2) as names:
    if names and sys.argv[2:] == ["leaves a child"]:
        child = subprocess.Popen(["sleep", "600"], pass_fds=pool.held(names), stdout=2)
        print(child.pid, flush=True)
    else:
        print(names, flush=True)
    sys.stdin.read()
"""


def never() -> bool:
    return False


def in_thread(pool: DevicePool, count: int | None, got: list[object], done: threading.Event) -> threading.Thread:
    def borrow() -> None:
        with pool.lend(count, never) as names:
            got.append(names)
            done.wait(timeout=30)

    thread = threading.Thread(target=borrow)
    thread.start()
    return thread


def test_gpus_are_lent_once_and_named_to_the_child() -> None:
    pool = DevicePool(["0", "1", "5"], cores=8)
    with pool.lend(2, never) as first, pool.lend(1, never) as second:
        assert first == ["0", "1"]
        assert second == ["5"]
        assert pool.environment(first) == {"CUDA_VISIBLE_DEVICES": "0,1"}
    with pool.lend(None, never) as names:
        assert names == ["0", "1", "5"]
    with pool.lend(0, never) as none:
        assert none == []
        assert pool.environment(none) == {"CUDA_VISIBLE_DEVICES": ""}


def test_a_machine_without_gpus_lends_its_cores() -> None:
    pool = DevicePool([], cores=2)
    with pool.lend(16, never) as names:
        assert names is not None
        assert len(names) == 2
        assert pool.environment(names) == {}


def test_what_holds_most_up_is_lent_to_first() -> None:
    pool = DevicePool([], cores=1)
    order: list[int] = []

    def borrow(urgency: int) -> None:
        with pool.lend(1, never, urgency):
            order.append(urgency)

    with pool.lend(1, never):
        threads = [threading.Thread(target=borrow, args=(urgency,)) for urgency in (1, 3, 2)]
        for thread in threads:
            thread.start()
        eventually(lambda: len(pool._queue) == 3)
    for thread in threads:
        thread.join(timeout=30)
    assert order == [3, 2, 1]


def test_who_needs_all_is_not_overtaken() -> None:
    pool = DevicePool([], cores=2)
    first, everything, late = threading.Event(), threading.Event(), threading.Event()
    got: list[object] = []
    with pool.lend(1, never):
        alone = in_thread(pool, None, got, everything)
        eventually(lambda: len(pool._queue) == 1)
        after = in_thread(pool, 1, got, late)
        eventually(lambda: len(pool._queue) == 2)
        assert got == []  # a core is free, but it is promised
    eventually(lambda: len(got) == 1)
    assert len(got[0]) == 2  # type: ignore[arg-type]
    for event in (first, everything, late):
        event.set()
    for thread in (alone, after):
        thread.join(timeout=30)
    assert len(got) == 2


def test_waiting_ends_when_given_up_and_blocks_nobody() -> None:
    pool = DevicePool([], cores=1)
    with pool.lend(1, never), pool.lend(1, lambda: True) as names:
        assert names is None
    with pool.lend(1, never) as names:
        assert names == ["0"]


def test_the_users_choice_of_gpus_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-1a2b")
    assert visible_gpus() == ["3", "GPU-1a2b"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == []


@pytest.fixture
def machine(tmp_path: Path) -> dict[str, str]:
    """The environment of a process on a machine with three GPUs."""
    listing = "\n".join(f"GPU {index}: NVIDIA H100 (UUID: {uuid})" for index, uuid in enumerate(UUIDS))
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{listing}\n  MIG 1g.10gb Device 0: (UUID: MIG-4d)\nEND\n")
    program.chmod(0o755)
    (tmp_path / "tmp").mkdir()
    kept = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
    path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    return {**kept, "PATH": path, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path / "tmp")}


@contextmanager
def borrowing(machine: dict[str, str], count: int, *how: str, visible: str = "") -> Iterator["subprocess.Popen[str]"]:
    """Another process that borrows GPUs until its input ends, or is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", BORROW, str(count), *how],
        env=machine | ({"CUDA_VISIBLE_DEVICES": visible} if visible else {}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_two_processes_are_never_lent_the_same_gpu(machine: dict[str, str]) -> None:
    with borrowing(machine, 2) as first:
        assert line(first) == "['0', '1']"
        with borrowing(machine, 1) as second:
            assert line(second) == "['2']"
            with borrowing(machine, 1, "gives up") as third:
                assert line(third) == "None"
            with borrowing(machine, 0) as everything:
                first.kill()  # whoever dies holds nothing more
                second.communicate("")
                assert line(everything) == "['0', '1', '2']"


def test_a_gpu_is_the_same_by_whatever_name(machine: dict[str, str]) -> None:
    with borrowing(machine, 1, visible="GPU-1b") as first:
        assert line(first) == "['GPU-1b']"
        with borrowing(machine, 1, "gives up", visible=UUIDS[1]) as second:
            assert line(second) == "None"
        with borrowing(machine, 2) as rest:
            assert line(rest) == "['0', '2']"


def test_who_waits_for_many_holds_none_that_others_need(machine: dict[str, str]) -> None:
    with borrowing(machine, 1) as first:
        assert line(first) == "['0']"
        with borrowing(machine, 0) as everything, borrowing(machine, 2) as two:
            assert line(two) == "['1', '2']"
            two.communicate("")
            first.communicate("")
            assert line(everything) == "['0', '1', '2']"


def test_a_stage_that_outlives_its_run_keeps_its_gpu(machine: dict[str, str]) -> None:
    with borrowing(machine, 1, "leaves a child") as killed:
        child = int(line(killed))
    assert still_works(child)
    with borrowing(machine, 0, "gives up") as everything:
        assert line(everything) == "None"
    os.kill(child, 9)
    with borrowing(machine, 0) as everything:
        assert line(everything) == "['0', '1', '2']"


def test_locks_are_for_every_user_and_follow_no_links(
    machine: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", machine["PATH"])
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    locks = gpu_locks(["0", "1"])
    assert len(set(locks.values())) == 2
    pool = DevicePool(["0"], 1, locks)
    old = os.umask(0o077)
    try:
        with pool.lend(1, never) as names:
            assert names == ["0"]
            assert locks["0"].stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(old)
    (tmp_path / "precious").write_text("mine")
    locks["1"].symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic links"), DevicePool(["1"], 1, locks).lend(1, never):
        pass
