"""A few texts of each kind of those that preparing dropped or changed, to look at, and the group that most text is of.

Costs under a microsecond a text. Which samples are kept depends on the texts alone, not on the order or the number of
the workers that met them.
"""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

_CHARACTERS = 500  # of a text that are kept


class _Sample(NamedTuple):
    identity: str
    text: str
    detail: str


class Samples:
    """For each (purpose, source, filter) the `most` texts whose identities sort first, each text once."""

    def __init__(self, most: int = 5) -> None:
        self.most = most
        self._kept: dict[tuple[str, str, str], list[_Sample]] = {}

    def add(self, purpose: str, source: str, name: str, identity: str, text: str, detail: str = "") -> None:
        """Meets one text, which the filter `name` dropped.

        `identity` is spread evenly, as a hash is, so that the samples are a random choice; `detail` is what the filter
        found. Both texts are cut to 500 characters.
        """
        kept = self._kept.setdefault((purpose, source, name), [])
        if len(kept) == self.most and identity > kept[-1].identity:
            return
        sample = _Sample(identity, text[:_CHARACTERS], detail[:_CHARACTERS])
        place = bisect_left(kept, sample)
        if sample not in kept[place : place + 1]:
            kept.insert(place, sample)
            del kept[self.most :]

    def merge(self, other: "Samples") -> None:
        """Takes in what another worker met."""
        for (purpose, source, name), samples in other._kept.items():
            for sample in samples:
                self.add(purpose, source, name, *sample)

    def lines(self) -> list[dict[str, str]]:
        """A sample a line (purpose, source, filter, text, detail where there is one), in a fixed order."""
        return list(self._lines())

    def _lines(self) -> Iterator[dict[str, str]]:
        for (purpose, source, name), samples in sorted(self._kept.items()):
            for sample in samples:
                line = {"purpose": purpose, "source": source, "filter": name, "text": sample.text}
                yield line | ({"detail": sample.detail} if sample.detail else {})


@dataclass
class Largest:
    """The group that may hold most of some texts, found in passing (Boyer and Moore's vote, by characters).

    At least `sure` of their `whole` characters are its own: more than half where one group holds over three quarters.
    """

    group: str = ""
    file: str = ""  # where it was met
    sure: int = 0
    whole: int = 0

    def add(self, group: str, file: str, characters: int) -> None:
        """Takes a text of a group."""
        self.whole += characters
        if group == self.group:
            self.sure += characters
        elif characters > self.sure:
            self.group, self.file, self.sure = group, file, characters - self.sure
        else:
            self.sure -= characters

    def merge(self, other: "Largest") -> None:
        """Takes what was found of other texts."""
        self.add(other.group, other.file, other.sure)
        self.whole += other.whole - other.sure
