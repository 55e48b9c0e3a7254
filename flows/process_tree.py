"""A process with all it has started: found, asked to end, ended. Costs a scan of the process table, some 20 ms."""

import contextlib
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

import psutil

MARK = "PIPELINE_PROCESS_TREE"  # in the environment of every member: descendants inherit it, wherever they go
WORKSPACE = "PIPELINE_PROCESS_FOLDER"  # likewise, the folder that the tree works in
KILL_ROUNDS = 5  # of up to two seconds: what hangs in a system call dies only when that returns
EXECUTED_SECONDS = 1.0  # a program has its environment within a millisecond of its start, on a busy machine later


class ProcessTree:
    """A child process in a session of its own, its output in one pipe, and all its descendants.

    Members are known by their session, by their parent, or by a mark in their environment: what a launcher has started
    in further sessions (as torchrun does with its workers) is found also after the launcher's death.
    """

    def __init__(
        self, command: list[str], folder: Path, environment: Mapping[str, str], keep_open: tuple[int, ...] = ()
    ) -> None:
        """Starts `command` in `folder`; it inherits the file descriptors `keep_open` and reads nothing."""
        self._mark = uuid.uuid4().hex
        self._signalled: set[int] = set()
        self.leader = subprocess.Popen(  # noqa: S603
            command,
            cwd=folder,
            env={**environment, MARK: self._mark, WORKSPACE: str(folder.resolve())},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            start_new_session=True,
            pass_fds=keep_open,
        )

    def members(self) -> list[psutil.Process]:
        """All that are alive, the leader among them."""
        found: dict[int, psutil.Process] = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if self._owns(process):
                    for member in (process, *process.children(recursive=True)):
                        if member.status() != psutil.STATUS_ZOMBIE:
                            found[member.pid] = member
        return list(found.values())

    def terminate(self, *, spare_leader: bool) -> bool:
        """SIGTERM to every member that has not had one, new ones included; false when none is alive any more."""
        members = self.members()
        for member in members:
            if member.pid not in self._signalled and not (spare_leader and member.pid == self.leader.pid):
                self._signalled.add(member.pid)
                with contextlib.suppress(psutil.Error):
                    member.terminate()
        return bool(members)

    def kill(self) -> None:
        """SIGKILL to every member, and to what they started meanwhile; nothing happens when all have ended."""
        for _ in range(KILL_ROUNDS):
            if not (members := self.members()):
                return
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.leader.pid, signal.SIGKILL)
            for member in members:
                with contextlib.suppress(psutil.Error):
                    member.kill()
            # The leader's exit status is for Popen to fetch: psutil would take it away.
            psutil.wait_procs([member for member in members if member.pid != self.leader.pid], timeout=1.0)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.leader.wait(1.0)

    def _owns(self, process: psutil.Process) -> bool:
        if os.getsid(process.pid) == self.leader.pid:
            return True
        return environment(process).get(MARK) == self._mark


def environment(process: psutil.Process) -> dict[str, str]:
    """What `process` was started with.

    Linux shows neither environment nor arguments while a program is being executed, which `Popen` does not wait for:
    such a process is asked again, and once more when it has arguments. A kernel's thread has no program. Raises
    psutil.Error for a process that has ended, and for one that may not be read.
    """
    deadline, executed = time.monotonic() + EXECUTED_SECONDS, False
    while not (found := process.environ()) and process.exe() and not executed and time.monotonic() < deadline:
        executed = bool(process.cmdline())
        time.sleep(0.001)
    return found


def end_survivors(folder: Path, grace_seconds: float) -> int:
    """Ends what the trees of a killed process still do in `folder`; gives how many processes that were.

    SIGTERM, and SIGKILL to what is left after `grace_seconds`. For whoever holds `folder` alone: all trees there are
    ended, but not this process or what has started it.
    """
    found = _survivors(folder)
    for process in found:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    deadline = time.monotonic() + grace_seconds
    while (left := _survivors(folder) if found else []) and time.monotonic() < deadline:
        time.sleep(0.1)
    for _ in range(KILL_ROUNDS if left else 0):
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=1.0)
        left = _survivors(folder)
    return len(found)


def _survivors(folder: Path) -> list[psutil.Process]:
    spared = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    name, found = str(folder.resolve()), []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            alive = process.pid not in spared and process.status() != psutil.STATUS_ZOMBIE
            if alive and environment(process).get(WORKSPACE) == name:
                found.append(process)
    return found
