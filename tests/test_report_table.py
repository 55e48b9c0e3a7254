"""What the comparison says of a task, and of all: honest where nothing was bought, and where less is better."""

from dataclasses import replace
from typing import Any

from stages.report_table import Interval, Row, headline


def row(
    difference: tuple[float, float, float], baseline: float = 10, over: tuple[float, float, float] = (20, 18, 22)
) -> Row:
    rest: dict[str, Any] = {"metric": "chrf", "primary": True, "records": 9, "signature": "", "trainings": {}}
    rest |= {"baseline_name": "copy the source", "over_baseline": Interval(*over)}
    scores = {
        "pretrained": Interval(30, 28, 32),
        "scratch": Interval(26, 25, 27),
        "baseline": Interval(baseline, 9, 11),
    }
    return Row(task="question_answering", difference=Interval(*difference), **scores, **rest)


def test_the_verdict_is_honest() -> None:
    assert row((4, 2.5, 5.5)).verdict() == (
        "Pre-training bought +4.0 [+2.5, +5.5] chrF: 30.0 against 26.0 from scratch."
    )
    assert (
        row((1, -0.5, 2)).verdict().startswith("Pre-training made no sure difference: +1.0 [-0.5, +2.0] chrF, and the")
    )
    assert row((-1, -2, -0.5)).verdict().startswith("Pre-training cost -1.0 [-2.0, -0.5] chrF: ")
    assert (
        row((1, -0.5, 2))
        .verdict()
        .endswith("With 9 test records a difference below about 1.2 cannot be told from chance.")
    )
    sure = replace(row((4, 2.5, 5.5)), difference=Interval(4, 2.5, 5.5, p=0.00099))
    assert "+4.0 [+2.5, +5.5] chrF (p ≤ 0.001): " in sure.verdict()
    assert Interval(1, -1, 3, p=0.2134).p_text() == "p = 0.213"


def test_more_than_the_baseline_is_only_what_is_surely_more() -> None:
    bought = "Pre-training bought +4.0 [+2.0, +5.0] chrF: 30.0 against 26.0 from scratch"
    for over, baseline, words in (
        ((2, 0.1, 4), 28, ""),
        ((2, -0.1, 4), 28, ", but not surely more than the trivial baseline (copy the source: 28.0, "),
        ((-1, -3, 1), 31, ", but not surely more than the trivial baseline (copy the source: 31.0, "),
        ((-10, -12, -8), 40, ", but less than the trivial baseline (copy the source: 40.0, "),
    ):
        told = words and f"{words}difference {Interval(*over).signed()})"
        assert row((4, 2, 5), baseline, over).verdict() == f"{bought}{told}."


def test_where_it_did_not_win_the_verdict_tells_what_is_known_of_the_trainings() -> None:
    trainings = {
        "pretrained": {"steps": 1200, "best_step": 180, "validation_loss": 2.314},
        "scratch": {"steps": 1200, "best_step": 1200, "validation_loss": 2.35},
    }
    kept = (
        " Best on the validation split, and so kept, were step 180 of 1,200 (loss 2.31) and, from scratch, step 1,200"
        " of 1,200 (loss 2.35)."
    )
    for difference in ((1, -0.5, 2), (-1, -2, -0.5)):
        without = row(difference)
        assert replace(without, trainings=trainings).verdict() == without.verdict() + kept
    won = row((4, 2.5, 5.5))
    assert replace(won, trainings=trainings).verdict() == won.verdict()


def test_where_less_is_better_a_fall_is_a_gain() -> None:
    fall = replace(row((-4, -5.5, -2.5), baseline=80, over=(-50, -53, -47)), metric="ter")
    assert fall.verdict().startswith("Pre-training bought -4.0 [-5.5, -2.5] TER (less is better): ")
    assert "baseline" not in fall.verdict()
    assert replace(fall, difference=Interval(4, 2.5, 5.5)).verdict().startswith("Pre-training cost +4.0")
    assert "not surely less than the trivial baseline" in replace(fall, over_baseline=Interval(-1, -3, 1)).verdict()
    assert "but more than the trivial baseline" in replace(fall, over_baseline=Interval(9, 7, 11)).verdict()


def test_the_headline_counts_the_tasks_that_were_won_and_names_the_others() -> None:
    won, unsure, lost = row((4, 2.5, 5.5)), row((1, -0.5, 2)), row((-1, -2, -0.5))
    assert headline([won, won]) == "Pre-training won on 2 of 2 tasks, outside the 95 % interval."
    told = headline([won, replace(won, primary=False), replace(unsure, task="translation"), lost])
    assert told.startswith(
        "Pre-training won on 1 of 3 tasks, outside the 95 % interval; not on translation (no sure diff"
    )
    assert told.endswith(", question answering (it cost).")


def test_what_chance_alone_may_give_is_not_sure() -> None:
    for p, outcome in ((None, "gain"), (0.049, "gain"), (0.05, "unsure"), (1.0, "unsure")):
        assert replace(row((4, 4, 4)), difference=Interval(4, 4, 4, p)).outcome == outcome
    few = replace(row((4, 4, 4)), difference=Interval(4, 4, 4, 1.0), records=1)
    assert few.verdict() == (
        "Pre-training made no sure difference: +4.0 [+4.0, +4.0] chrF (p = 1.000), which with 1 test record may be "
        "chance: 30.0 against 26.0 from scratch."
    )
    won = replace(row((4, 2, 5)), over_baseline=Interval(20, 20, 20, 0.2))
    assert ", but not surely more than the trivial baseline (" in won.verdict()
