"""What a stage prints, as a file: `log.txt` of its run in MLflow. Costs some 10 µs a line.

Heard are Python's stdout and stderr in the stage's own process, not what child processes or C libraries write. Of a
progress bar only a state every half minute is kept, and its last. Secrets are taken out before a line is written.
"""

import logging
import os
import platform
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO, Any, TextIO, cast

from stages.scrub import scrubbed

LOG = "log.txt"
BAR_SECONDS = 30.0  # between two states of a progress bar
_TERMINAL_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_EARLY_LINES = 10_000  # kept until the run has a folder; a process without a run keeps no more


class StageLog:
    """The lines of a stage, in memory until `keep_in` names a file, and what is to be done after the last of them."""

    def __init__(self) -> None:
        self._early: list[str] = []
        self._file: IO[str] | None = None
        self._writing = threading.Lock()
        self._at_end: list[Callable[[], None]] = []

    def add(self, line: str) -> None:
        """Keeps one line. A full disk costs the line, not the work."""
        with self._writing:
            if self._file:
                with suppress(OSError):
                    self._file.write(f"{scrubbed(line)}\n")
                    self._file.flush()
            elif len(self._early) < _EARLY_LINES:
                self._early.append(line)

    def keep_in(self, path: Path, stage: str) -> None:
        """Appends what was and will be printed to a file, under a line that says when and where it began."""
        with self._writing:
            if self._file:
                self._file.close()
            self._file = path.open("a", encoding="utf-8")
            early, self._early = self._early, []
        self.add(f"--- {stage}, {datetime.now().astimezone():%Y-%m-%d %H:%M:%S %Z}, {platform.node()}, {os.getpid()}")
        for line in early:
            self.add(line)

    def at_end(self, action: Callable[[], None]) -> None:
        """Has something done when the stage has printed its last line."""
        self._at_end.append(action)

    def end(self) -> None:
        """Does it."""
        for action in self._at_end:
            action()


class _Ear:
    """A stream that hands everything on, and tells the log each whole line.

    A reader that has died, as the run's process may, costs what it would have read, not the work.
    """

    def __init__(self, stream: TextIO, log: StageLog) -> None:
        self._stream, self._log = stream, log
        self._rest, self._bar, self._told = "", "", -BAR_SECONDS
        self._hearing = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes, raising what the stream raises but for a reader that is gone, then keeps."""
        with self._outliving():
            self._stream.write(text)
        with self._hearing:
            *ended, self._rest = re.split(r"(?<=[\r\n])", self._rest + text)
            for piece in ended:
                self._take(piece)
        return len(text)

    def flush(self) -> None:
        """Flushes, likewise."""
        with self._outliving():
            self._stream.flush()

    def finish(self) -> None:
        """Keeps what did not end with a newline."""
        with self._hearing:
            if line := _plain(self._rest) or self._bar:
                self._log.add(line)
            self._rest = self._bar = ""

    @contextmanager
    def _outliving(self) -> Iterator[None]:
        """Where the reader is gone, what is still held back and all that comes later goes to nobody."""
        try:
            yield
        except BrokenPipeError:
            nobody = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nobody, self._stream.fileno())
            os.close(nobody)

    def _take(self, piece: str) -> None:
        line = _plain(piece)
        if piece.endswith("\n"):
            self._log.add(line or self._bar)
            self._bar, self._told = "", -BAR_SECONDS if self._bar else self._told
        elif line:  # a state that the next one is written over
            self._bar = line
            if time.monotonic() - self._told >= BAR_SECONDS:
                self._log.add(line)
                self._bar, self._told = "", time.monotonic()


current: StageLog | None = None  # of this process, where it is a stage's


@contextmanager
def heard() -> Iterator[StageLog]:
    """Keeps what this process prints in the block, and the traceback of an error that leaves it."""
    global current
    log = current = StageLog()
    streams = sys.stdout, sys.stderr
    ears = [_Ear(stream, log) for stream in streams]
    sys.stdout, sys.stderr = (cast(TextIO, ear) for ear in ears)
    _move_handlers(dict(zip(streams, (sys.stdout, sys.stderr), strict=True)))
    try:
        yield log
    except Exception:
        for line in traceback.format_exc().splitlines():  # printed by Python itself, but later
            log.add(line)
        raise
    finally:
        for ear in ears:
            ear.finish()
        log.end()
        sys.stdout, sys.stderr = streams  # first: some handlers look here each time, and cannot be given a stream
        _move_handlers({cast(TextIO, ear): stream for ear, stream in zip(ears, streams, strict=True)})
        current = None


def _move_handlers(streams: dict[TextIO, TextIO]) -> None:
    """Handlers of `logging` took a stream when their library was imported: they get the one that stands for it now."""
    loggers = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
    for logger in loggers:
        for handler in getattr(logger, "handlers", []):
            if isinstance(handler, logging.StreamHandler) and handler.stream in streams:
                handler.setStream(streams[handler.stream])


def _plain(text: str) -> str:
    return _TERMINAL_CODES.sub("", text).rstrip()
