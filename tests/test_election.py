"""Elections of a champion: registrations that meet in every order agree on the best, also where one is killed."""

import random
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest

from stages.election import Verdict, elect
from stages.registry import CHALLENGER, CHAMPION

SURELY = 1.0  # by so much a strength must exceed another's


class Killed(BaseException):
    """Ends a registration where it stands."""


class Shelf:
    """The server: each call by itself is whole, nothing else is. `turn` is called before each."""

    def __init__(self, versions: Mapping[str, Mapping[str, str]], champion: str | None) -> None:
        self.tags = {number: dict(tags) for number, tags in versions.items()}
        self.aliases = {CHAMPION: champion} if champion else {}
        self.turn: Callable[[], None] = lambda: None

    def versions(self) -> dict[str, dict[str, str]]:
        self.turn()
        return {number: dict(tags) for number, tags in self.tags.items()}

    def alias(self, alias: str) -> str | None:
        self.turn()
        return self.aliases.get(alias)

    def tag(self, number: str, **tags: str) -> None:
        for key, value in tags.items():
            self.turn()
            self.tags[number][key] = value

    def set_alias(self, alias: str, number: str) -> None:
        self.turn()
        self.aliases[alias] = number

    def drop_alias(self, alias: str, number: str) -> None:
        self.turn()
        if self.aliases.get(alias) == number:
            self.turn()
            self.aliases.pop(alias, None)


def judge(strengths: Mapping[str, float]) -> Callable[[str, str], Verdict]:
    def better(one: str, other: str) -> Verdict:
        won = strengths[one] - strengths[other] > SURELY
        return Verdict(won, f"{'better' if won else 'not surely better'} than {other}")

    return better


def in_random_order(work: list[Callable[[], Any]], shelf: Shelf, draw: random.Random, kill: float) -> list[Any]:
    """Runs each in a thread, one call to the server at a time, in a random order; some are killed between two calls."""
    me = threading.local()
    may_go = [threading.Semaphore(0) for _ in work]
    stopped = threading.Semaphore(0)
    doomed = [draw.random() < kill for _ in work]
    waiting, results = set(range(len(work))), [None for _ in work]

    def turn() -> None:
        stopped.release()
        may_go[me.number].acquire()
        if doomed[me.number] and draw.random() < 0.15:
            raise Killed

    def run(number: int) -> None:
        me.number = number
        try:
            may_go[number].acquire()
            results[number] = work[number]()
        except Killed:
            pass
        finally:
            waiting.discard(number)
            stopped.release()

    shelf.turn = turn
    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(work))]
    for thread in threads:
        thread.start()
    number, stay = 0, draw.choice([0.0, 0.5, 0.9])  # one may do much before another goes on
    while waiting:
        if number not in waiting or draw.random() > stay:
            number = draw.choice(sorted(waiting))
        may_go[number].release()
        stopped.acquire()
    for thread in threads:
        thread.join()
    shelf.turn = lambda: None
    return results


@pytest.mark.parametrize("kill", [0.0, 0.5])
@pytest.mark.parametrize(("meet", "step"), [(3, 1.1), (2, 0.6)], ids=["three", "two, not always surely better"])
def test_whatever_the_order_nobody_that_asked_is_better_than_the_champion(kill: float, meet: int, step: float) -> None:
    met = 0
    for seed in range(500):
        draw = random.Random(seed)
        strengths = {str(number): step * draw.randrange(5) for number in range(1, 5)} | {"5": 0.0}
        first = {"1": {"state": "promoted"}} if seed % 3 else {}
        new = [number for number in ("1", "2", "3", "4") if number not in first][:meet]
        shelf = Shelf(first | {number: {} for number in new}, "1" if first else None)
        better = judge(strengths)
        work = [partial(elect, shelf, number, better) for number in new]
        results = in_random_order(work, shelf, draw, kill)

        done = [number for number, result in zip(new, results, strict=True) if result]
        if kill:  # a whole one at the end mends what a killed one left
            shelf.tags["5"] = {}
            elect(shelf, "5", better)
        champion = shelf.aliases[CHAMPION]
        for number in done:
            assert not better(number, champion).better, (seed, number, champion)
            assert shelf.tags[number]["state"] in ("promoted", "challenger"), seed
        if champion in done:
            assert shelf.tags[champion]["state"] == "promoted", seed
        if not kill:
            assert shelf.tags[champion]["state"] == "promoted", seed
            assert shelf.aliases.get(CHALLENGER) != champion, seed
            met += sum(shelf.tags[number]["state"] == "promoted" for number in new) > 1
        chain, number = [], champion
        while number:
            assert number not in chain, "a ring of versions that took over from each other"
            chain.append(number)
            number = shelf.tags[number].get("replaced")
    assert kill or met > 10, "registrations did meet"


def test_one_after_the_other() -> None:
    shelf = Shelf({"1": {}}, None)
    better = judge({"1": 0, "2": 0.5, "3": 2, "4": 9})
    assert elect(shelf, "1", better) == (CHAMPION, "the first of its name")
    assert elect(shelf, "1", better) == (CHAMPION, "still the champion")
    shelf.tags["2"] = {}
    assert elect(shelf, "2", better) == (CHALLENGER, "not surely better than 1")
    assert shelf.aliases == {CHAMPION: "1", CHALLENGER: "2"}
    shelf.tags["3"] = {}
    assert elect(shelf, "3", better) == (CHAMPION, "better than 1")
    assert shelf.tags["3"] == {"state": "promoted", "replaced": "1", "alias_reason": "better than 1"}
    assert elect(shelf, "2", better) == (CHALLENGER, "not surely better than 3")


def test_what_was_champion_once_is_not_made_champion_again() -> None:
    shelf = Shelf({"1": {"state": "promoted"}, "2": {"state": "rolled back", "replaced": "1"}}, "1")
    better = judge({"1": 0, "2": 9, "3": 5})
    before = shelf.versions()
    assert elect(shelf, "2", better) == (
        None,
        "it was champion before version 1: only rollback --to 2 makes it so again",
    )
    assert shelf.versions() == before
    shelf.tags["3"] = {}
    assert elect(shelf, "3", better) == (CHAMPION, "better than 1")
    assert shelf.tags["3"]["replaced"] == "1"


def test_a_version_whose_registration_was_killed_does_not_hold_others_up() -> None:
    shelf = Shelf({"1": {"state": "promoted"}, "2": {"state": "pending"}, "3": {}}, "1")
    better = judge({"1": 0, "2": 9, "3": 5})
    assert elect(shelf, "3", better) == (CHAMPION, "better than 1")
    assert elect(shelf, "2", better) == (CHAMPION, "better than 3")


def test_an_alias_that_a_killed_registration_set_over_a_better_one_is_set_right_by_the_next() -> None:
    promoted = {"1": {"state": "promoted"}, "3": {"state": "promoted", "replaced": "1"}}
    shelf = Shelf(promoted | {"2": {"state": "taking over", "replaced": "1"}, "4": {}}, "2")
    assert elect(shelf, "4", judge({"1": 0, "2": 5, "3": 9, "4": 1})) == (CHALLENGER, "not surely better than 3")
    assert shelf.aliases == {CHAMPION: "3", CHALLENGER: "4"}
