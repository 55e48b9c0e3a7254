"""Which registered version is champion, where several registrations may ask at the same time.

MLflow's server has no locks and no compare-and-set, so registrations that meet agree by reading again what they wrote.
Costs some ten requests, besides the comparisons.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from lightning_modules.errors import PipelineError
from stages.registry import CHALLENGER, CHALLENGING, CHAMPION, PENDING, PROMOTED, ROLLED_BACK, TAKING_OVER

ATTEMPTS = 20  # each is lost only to something that another registration wrote meanwhile
Tags = Mapping[str, Mapping[str, str]]  # of each version


@dataclass(frozen=True)
class Verdict:
    """Whether one version is better than another, in words, and with what numbers (tags of the version)."""

    better: bool
    reason: str
    tags: dict[str, str] = field(default_factory=dict)


class Versions(Protocol):
    """What an election needs of `stages.registry.Registry`."""

    def versions(self) -> dict[str, dict[str, str]]:
        """The tags of each version."""

    def alias(self, alias: str) -> str | None:
        """The version that has the alias."""

    def tag(self, number: str, **tags: str) -> None:
        """Sets tags of a version."""

    def set_alias(self, alias: str, number: str) -> None:
        """Gives the alias to a version."""

    def drop_alias(self, alias: str, number: str) -> None:
        """Takes the alias from a version."""


def elect(registry: Versions, mine: str, better: Callable[[str, str], Verdict]) -> tuple[str | None, str]:
    """Makes the version `mine` champion or challenger and tags it with the reason; gives its alias and the reason.

    `better(one, other)` compares two versions. Every registration keeps this order: read which versions were promoted;
    read who is champion; compare; where mine is better, set the alias and then the tag that says so; read both again,
    and begin anew where another version was promoted meanwhile or the alias is another's. So of two that meet, the one
    that writes its tag last finds the other's, or its own alias gone, and compares the two. A version that was champion
    once is not made so again: whoever took the alias away had a reason. Raises PipelineError where others never cease.
    """
    tags, now = registry.versions(), registry.alias(CHAMPION)
    if now == mine and tags[mine].get("state") == PROMOTED:
        return CHAMPION, "still the champion"
    if now != mine and tags[mine].get("state") in (PROMOTED, ROLLED_BACK):
        return None, f"it was champion before version {now}: only rollback --to {mine} makes it so again"
    registry.tag(mine, state=PENDING)
    known, verdict = _promoted(tags), Verdict(True, "still the champion")
    for _ in range(ATTEMPTS):
        tags = registry.versions()
        before = champion = registry.alias(CHAMPION)
        for number in sorted({mine} | (_promoted(tags) - known) | _overwritten(tags, before), key=int):
            if number == champion:
                continue
            found = better(number, champion) if champion else Verdict(True, "the first of its name")
            if found.better:
                champion = number
            if number == mine:
                verdict = found
        assert champion is not None  # mine, at the least
        if champion != before:
            if before and "replaced" not in tags[champion]:
                registry.tag(champion, replaced=before)
            registry.set_alias(CHAMPION, champion)
            registry.tag(champion, state=TAKING_OVER if champion == mine else PROMOTED)
            registry.drop_alias(CHALLENGER, champion)
        if registry.alias(CHAMPION) == champion and _promoted(registry.versions()) - {mine} <= _promoted(tags):
            alias, reason = _settle(registry, mine, champion, verdict if champion == mine else better(mine, champion))
            if (
                alias == CHAMPION or registry.alias(CHAMPION) != mine
            ):  # another may give it back what it had for a moment
                return alias, reason
    raise PipelineError(
        f"version {mine} is neither champion nor challenger yet, others keep registering: run this again"
    )


def forerunners(tags: Tags, champion: str) -> list[str]:
    """The champions before `champion`, the last first, as far as the tags tell."""
    found: list[str] = []
    number = tags[champion].get("replaced")
    while number and number in tags and number not in (champion, *found):  # tags can be edited, to a ring or to nowhere
        found.append(number)
        number = tags[number].get("replaced")
    return found


def _promoted(tags: Tags) -> set[str]:
    return {number for number, its in tags.items() if its.get("state") in (TAKING_OVER, PROMOTED)}


def _overwritten(tags: Tags, champion: str | None) -> set[str]:
    """Promoted versions that are not among the champion's forerunners, where its registration never looked again.

    That one was killed right after it had set the alias, and may have taken it from a version that it did not know.
    """
    if champion is None or tags.get(champion, {}).get("state") not in (PENDING, TAKING_OVER):
        return set()
    return _promoted(tags) - {champion, *forerunners(tags, champion)}


def _settle(registry: Versions, mine: str, champion: str, verdict: Verdict) -> tuple[str, str]:
    alias, state = (CHAMPION, PROMOTED) if mine == champion else (CHALLENGER, CHALLENGING)
    if alias == CHALLENGER:
        registry.set_alias(CHALLENGER, mine)
    else:
        registry.drop_alias(CHALLENGER, mine)
    registry.tag(mine, **verdict.tags, alias_reason=verdict.reason, state=state)
    return alias, verdict.reason
