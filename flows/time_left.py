"""How long a run takes yet, by what its stages took the last time. Costs nothing."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

_BAR_LEFT = re.compile(r"<(?:(\d+):)?(\d+):(\d+)")


@dataclass(frozen=True)
class Job:
    """A stage that has not ended: how long it takes yet, what it occupies and waits for."""

    seconds: float
    devices: int | None  # None: all of the machine's
    upstream: tuple[str, ...] = ()  # also stages that have ended
    running: bool = False


def bar_left(text: str) -> float | None:
    """Seconds left as a progress bar says it: "360/1200, 00:40<01:33, 9.0step/s"; None where it says nothing."""
    if (match := _BAR_LEFT.search(text)) is None:
        return None
    hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return 3600.0 * hours + 60.0 * minutes + seconds


def time_left(jobs: Mapping[str, Job], devices: int) -> float:
    """Seconds until the last job has ended, if each starts as soon as what it needs is there and enough is free.

    Of several that could start, the first in the order of `jobs` does, as near as the devices' own order is.
    """
    waiting, ends, now, free = dict(jobs), dict[str, float](), 0.0, devices

    def occupies(name: str) -> int:
        wanted = jobs[name].devices
        return devices if wanted is None else min(wanted, devices)

    while waiting or ends:
        for name, job in list(waiting.items()):
            ready = all(other not in waiting and other not in ends for other in job.upstream)
            if job.running or (ready and occupies(name) <= free):
                free -= occupies(name)
                ends[name] = now + job.seconds
                del waiting[name]
        if not ends:
            break  # a circle: dvc.yaml has none
        first = min(ends, key=lambda name: ends[name])
        now = ends.pop(first)
        free += occupies(first)
    return now
