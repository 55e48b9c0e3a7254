"""Runs one stage in a child process group, `dvc repro --single-item STAGE`, and ends the whole tree when asked to.

Never imports Prefect. DVC costs 1 s a stage that runs and 0.6 s one that does not; reading the output costs nothing.
"""

import codecs
import contextlib
import enum
import os
import re
import select
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from flows.process_tree import ProcessTree
from stages.scrub import scrubbed

STOP_GRACE_SECONDS = 20.0  # from SIGTERM to SIGKILL: time to save a checkpoint
EXIT_STATUS = re.compile(r"^ERROR: failed to reproduce .*exited with (-?\d+)$")
SHELL_SIGNAL_STATUS = 128  # plus the signal's number
USAGE_STATUS = 2
POLL_SECONDS = 0.2
TERMINAL_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")  # tqdm moves the cursor between bars


class Outcome(enum.StrEnum):
    """What became of a stage."""

    RAN = "ran"
    UNCHANGED = "unchanged"
    FAILED = "failed"
    STOPPED = "stopped"
    NOT_RUN = "not run"  # because a stage that it needs has failed or was stopped


@dataclass(frozen=True)
class Result:
    """How a stage ended."""

    outcome: Outcome
    seconds: float
    message: str = ""  # one line: the error, or where the outputs came from
    may_retry: bool = False  # a failure that a second try could mend: not a wrong input, not a stop
    tail: tuple[str, ...] = ()  # the last lines of its log, when it failed


class StageRunner:
    """Runs stages, several at a time, one a thread; `stop()` ends them all, from any thread or signal handler."""

    def __init__(self, root: Path, environment: Mapping[str, str], keep_open: tuple[int, ...] = ()) -> None:
        """`keep_open`: file descriptors (the workspace's lock) that DVC's process is to hold while it lives."""
        self._root = root
        self._environment = child_environment(environment)
        self._keep_open = keep_open
        self._stopping = threading.Event()
        self._running: set[ProcessTree] = set()

    @property
    def stopping(self) -> bool:
        """Whether `stop()` has been called: then no stage starts any more."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """Asks every running stage to end: SIGTERM now, SIGKILL after the time of grace. Does not wait."""
        self._stopping.set()

    def kill(self) -> None:
        """Ends every running stage at once."""
        self._stopping.set()
        for tree in list(self._running):
            tree.kill()

    def run(
        self,
        stage: str,
        on_line: Callable[[str], None],
        *,
        timeout_seconds: float | None = None,
        environment: Mapping[str, str] | None = None,
        keep_open: tuple[int, ...] = (),
    ) -> Result:
        """Runs `stage` to its end, calling `on_line` with each line of its output. Never raises for its failure.

        `keep_open`: further file descriptors for DVC's process to hold, the locks of the devices it was lent.
        """
        began = time.monotonic()
        if self.stopping:
            return Result(Outcome.STOPPED, 0.0, "stopped before it began")
        command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", stage]
        environment = self._environment | dict(environment or {})
        tree = ProcessTree(command, self._root, environment, self._keep_open + keep_open)
        self._running.add(tree)
        log = StageLog(stage, on_line)
        deadline = None if timeout_seconds is None else began + timeout_seconds
        try:
            timed_out = self._follow(tree, log, deadline)
        finally:
            tree.kill()  # whatever the stage left behind, also when `on_line` raised
            status = tree.leader.wait()
            self._running.discard(tree)
        result = log.result(status, asked_to_stop=self.stopping)
        if timed_out and result.outcome is not Outcome.RAN and timeout_seconds is not None:
            message = f"took longer than its {timeout_seconds / 60:g} minutes (meta.timeout_minutes in dvc.yaml)"
            result = Result(Outcome.FAILED, 0.0, message, may_retry=True, tail=result.tail)
        return replace(result, seconds=time.monotonic() - began)

    def _follow(self, tree: ProcessTree, log: "StageLog", deadline: float | None) -> bool:
        """Reads the output until the process, and when stopping its whole tree, has ended; true if it timed out."""
        kill_at: float | None = None
        timed_out = False
        while True:
            ended = tree.leader.poll() is not None
            read_something = read_output(tree, log)
            if kill_at is None and not ended:
                timed_out = deadline is not None and time.monotonic() > deadline
                if timed_out or self.stopping:
                    kill_at = time.monotonic() + STOP_GRACE_SECONDS
            if kill_at is not None:
                # DVC itself is to live and note how its command ended; before the command there is nothing to note.
                ended = not tree.terminate(spare_leader=log.command_started)
                if time.monotonic() > kill_at:
                    tree.kill()
                    ended = True
            if ended and not read_something:
                log.close()
                return timed_out


def read_output(tree: ProcessTree, log: "StageLog") -> bool:
    """Hands on what the process has written, waiting a moment for it; false if there was nothing."""
    pipe = tree.leader.stdout
    assert pipe is not None
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    if not poll.poll(POLL_SECONDS * 1000):
        return False
    chunk = os.read(pipe.fileno(), 1 << 16)
    log.feed(chunk)
    if not chunk:
        with contextlib.suppress(subprocess.TimeoutExpired):
            tree.leader.wait(POLL_SECONDS)  # it has closed its output, and may still be at work
    return bool(chunk)


class StageLog:
    """The output of `dvc repro`, cut into lines at \\n and \\r, and what it tells about the stage.

    Secrets are taken out of it: what it hands on goes to logs, files and a webhook.
    """

    def __init__(self, stage: str, on_line: Callable[[str], None]) -> None:
        self._stage = stage
        self._on_line = on_line
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._rest = ""
        self._tail: deque[str] = deque(maxlen=30)
        self._from_cache = False
        self._exit_status: int | None = None
        self._dvc_error = ""
        self.command_started = False

    def feed(self, chunk: bytes) -> None:
        """Takes the next bytes of the output."""
        *lines, self._rest = re.split(r"[\r\n]", self._rest + self._decoder.decode(chunk))
        for line in lines:
            self._take(line)

    def close(self) -> None:
        """Takes what is left when the output has ended without a newline."""
        self._take(self._rest + self._decoder.decode(b"", final=True))
        self._rest = ""

    def _take(self, line: str) -> None:
        line = TERMINAL_CODES.sub("", line).rstrip()
        if not line:
            return
        self.command_started |= line == f"Running stage '{self._stage}':"
        line = scrubbed(line)
        if not self.command_started and "is cached - skipping run" in line:
            self._from_cache = True
        elif match := EXIT_STATUS.match(line):
            self._exit_status = int(match[1])
        elif line.startswith("ERROR: "):
            self._dvc_error = line.removeprefix("ERROR: ")
        self._tail.append(line)
        self._on_line(line)

    def result(self, dvc_status: int, *, asked_to_stop: bool) -> Result:
        """The stage's end, from DVC's exit status and, if its command failed, the status that DVC's message names.

        A stage that was ended by another than the flow, with SIGTERM where a machine is taken back, has failed: the
        retry goes on from its checkpoint.
        """
        if dvc_status == 0:
            if self.command_started:
                return Result(Outcome.RAN, 0.0)
            return Result(Outcome.UNCHANGED, 0.0, "taken from DVC's cache" if self._from_cache else "")
        status = self._exit_status if self._exit_status is not None else dvc_status
        if status > SHELL_SIGNAL_STATUS:
            status = SHELL_SIGNAL_STATUS - status  # as a shell says it that became the command itself
        tail = tuple(self._tail)
        if asked_to_stop:
            return Result(Outcome.STOPPED, 0.0, "the next run goes on from its checkpoint, if it keeps one", tail=tail)
        written = [line for line in tail if not line.startswith(("ERROR: ", "Running stage ", "> "))]
        ours = next((line for line in reversed(written[-3:]) if line.startswith("error: ")), None)
        wrong_input = ours is not None or status == USAGE_STATUS or (self._exit_status is None and dvc_status > 0)
        message = ours or self._dvc_error or (written[-1] if written else f"exit status {status}")
        if -status in set(signal.Signals):
            message = f"ended by signal {signal.Signals(-status).name}"
        return Result(Outcome.FAILED, 0.0, message.removeprefix("error: "), may_retry=not wrong_input, tail=tail)


def child_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """This process's environment for a stage: `python` is this Python, output comes at once, DVC reports to nobody."""
    scripts = sysconfig.get_path("scripts")
    return (
        dict(os.environ)
        | {"PATH": os.pathsep.join([scripts, os.environ.get("PATH", os.defpath)]), "PYTHONUNBUFFERED": "1"}
        | {"DVC_NO_ANALYTICS": "true"}
        | dict(extra)
    )
