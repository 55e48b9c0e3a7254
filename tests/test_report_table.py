"""What the comparison says of a task, and of all: honest where nothing was bought, and where less is better."""

from dataclasses import replace

from stages.report_table import Interval, Row, headline


def row(difference: tuple[float, float, float], baseline: float = 10) -> Row:
    rest = {"metric": "chrf", "primary": True, "records": 9, "baseline_name": "copy the source", "signature": ""}
    scores = {
        "pretrained": Interval(30, 28, 32),
        "scratch": Interval(26, 25, 27),
        "baseline": Interval(baseline, 9, 11),
    }
    return Row(task="question_answering", difference=Interval(*difference), **scores, **rest)  # type: ignore[arg-type]


def test_the_verdict_is_honest() -> None:
    assert row((4, 2.5, 5.5)).verdict() == (
        "Pre-training bought +4.0 [+2.5, +5.5] chrF: 30.0 against 26.0 from scratch."
    )
    assert (
        row((1, -0.5, 2)).verdict().startswith("Pre-training made no sure difference: +1.0 [-0.5, +2.0] chrF, and the")
    )
    assert row((-1, -2, -0.5)).verdict().startswith("Pre-training cost -1.0 [-2.0, -0.5] chrF: ")
    assert "but no more than the trivial baseline (copy the source: 40.0)." in row((4, 2, 5), baseline=40).verdict()
    assert (
        row((1, -0.5, 2))
        .verdict()
        .endswith("With 9 test records a difference below about 1.2 cannot be told from chance.")
    )
    sure = replace(row((4, 2.5, 5.5)), difference=Interval(4, 2.5, 5.5, p=0.00099))
    assert "+4.0 [+2.5, +5.5] chrF (p ≤ 0.001): " in sure.verdict()
    assert Interval(1, -1, 3, p=0.2134).p_text() == "p = 0.213"


def test_where_less_is_better_a_fall_is_a_gain() -> None:
    fall = replace(row((-4, -5.5, -2.5), baseline=80), metric="ter")
    assert fall.verdict().startswith("Pre-training bought -4.0 [-5.5, -2.5] TER (less is better): ")
    assert "baseline" not in fall.verdict()
    assert replace(fall, difference=Interval(4, 2.5, 5.5)).verdict().startswith("Pre-training cost +4.0")
    assert "no more than the trivial baseline" in replace(fall, baseline=Interval(20, 19, 21)).verdict()


def test_the_headline_counts_the_tasks_that_were_won_and_names_the_others() -> None:
    won, unsure, lost = row((4, 2.5, 5.5)), row((1, -0.5, 2)), row((-1, -2, -0.5))
    assert headline([won, won]) == "Pre-training won on 2 of 2 tasks, outside the 95 % interval."
    told = headline([won, replace(won, primary=False), replace(unsure, task="translation"), lost])
    assert told.startswith(
        "Pre-training won on 1 of 3 tasks, outside the 95 % interval; not on translation (no sure diff"
    )
    assert told.endswith(", question answering (it cost).")
