"""tqdm's lines in a stage's output: what they say, and how few of them belong in a log. Costs nothing to import."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

TQDM_LINE = re.compile(
    r"^(?:(?P<name>.*?): +)?(?P<percent>\d{1,3})%\|[^|]*\| *(?P<done>\S+)/(?P<total>\S+) \[(?P<timing>[^\]]*)\]?"
)
TQDM_UNKNOWN_TOTAL = re.compile(r"^(?:(?P<name>.*?): )?(?P<done>[\d.]+[kMGT]?)\S* \[(?P<timing>[\d:]+,[^\]]*)\]?$")


@dataclass(frozen=True)
class Progress:
    """One state of a progress bar."""

    name: str
    share: float | None  # 0 to 1; None where the total is not known
    text: str  # "360/1200, 00:40<01:33, 9.0step/s, loss=4.2"


def parse_progress(line: str) -> Progress | None:
    """Reads a line that tqdm wrote; None for any other line."""
    if match := TQDM_LINE.match(line):
        text = f"{match['done']}/{match['total']}, {match['timing']}"
        return Progress(match["name"] or "", min(int(match["percent"]), 100) / 100, text)
    if match := TQDM_UNKNOWN_TOTAL.match(line):
        return Progress(match["name"] or "", None, f"{match['done']}, {match['timing']}")
    return None


class ProgressThinner:
    """Lets through the first state of a bar, its last, and between them one each `step` or each `seconds`."""

    def __init__(self, step: float = 0.1, seconds: float = 15.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._step = step
        self._seconds = seconds
        self._clock = clock
        self._last: Progress | None = None
        self._last_time = 0.0

    def passes(self, progress: Progress) -> bool:
        """Whether this state is worth a line; the next ones are then measured from it."""
        last, now = self._last, self._clock()
        share, last_share = progress.share or 0.0, (last.share or 0.0) if last else 0.0
        worth = (
            last is None
            or progress.name != last.name
            or share - last_share > self._step - 1e-9
            or (share == 1.0 and last_share < 1.0)
            or now - self._last_time >= self._seconds
        )
        if worth:
            self._last, self._last_time = progress, now
        return worth
