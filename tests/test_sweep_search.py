"""What a sweep tries next depends on what was tried and on its seed, not on who was killed meanwhile."""

from pathlib import Path

from sweep_project import GOOD_AND_BAD, ask_and_tell, write_sweep

from flows.sweep_definition import read_sweep
from flows.sweep_search import COMPLETE, FAILED, Search, Trial


def test_what_is_tried_does_not_depend_on_interruptions(tmp_path: Path) -> None:
    sweep = read_sweep(tmp_path / write_sweep(tmp_path, "rates", GOOD_AND_BAD, trials=16))
    whole = Search(sweep, tmp_path / "whole.db")
    expected = [ask_and_tell(whole) for _ in range(16)]  # the first ten at random, then TPE's
    assert whole.ask() is None
    found = []
    for number in range(16):
        search = Search(sweep, tmp_path / "parts.db")
        asked = search.ask()
        assert asked is not None
        again = Search(sweep, tmp_path / "parts.db")  # the process was killed before the trial's end
        (interrupted,) = again.interrupted()
        assert interrupted == asked
        assert interrupted.number == number
        value = 1 / asked.values["pretrain.learning_rate"]
        again.tell(Trial(number, asked.values, FAILED if value > 900 else COMPLETE, value))
        found.append(asked.values)
    assert found == expected
    best = again.best()
    assert best is not None
    assert best.values["pretrain.learning_rate"] == max(values["pretrain.learning_rate"] for values in expected)
