"""How long a run takes yet, against schedules worked out by hand and bounds that hold for any."""

from hypothesis import given
from hypothesis import strategies as st
from tqdm import tqdm

from flows.progress import parse_progress
from flows.time_left import Job, bar_left, time_left


def test_schedules_worked_out_by_hand() -> None:
    assert time_left({}, 2) == 0
    assert time_left({"a": Job(30, 1, running=True), "b": Job(10, 1, ("a",))}, 2) == 40
    three = {name: Job(10, 1, ("prepare",)) for name in "abc"}  # `prepare` has ended
    assert time_left(three, 3) == 10
    assert time_left(three, 2) == 20
    assert time_left(three | {"report": Job(1, 0, ("a", "b", "c"))}, 2) == 21
    assert time_left({"all": Job(10, None), "one": Job(5, 1)}, 2) == 15
    assert time_left({"fetch": Job(10, 0), "one": Job(5, 1)}, 1) == 10, "what takes no device waits for none"
    assert time_left({"many": Job(10, 8)}, 2) == 10, "more than there are: all"


@given(
    st.lists(st.tuples(st.floats(0, 1e4), st.sampled_from((None, 0, 1, 2)), st.sets(st.integers(0, 8))), max_size=9),
    st.integers(1, 4),
)
def test_never_less_than_the_longest_chain_nor_more_than_all_in_turn(
    drawn: list[tuple[float, int | None, set[int]]], devices: int
) -> None:
    jobs, chains = dict[str, Job](), dict[str, float]()
    for number, (seconds, wanted, before) in enumerate(drawn):
        upstream = tuple(str(other) for other in before if other < number)
        jobs[str(number)] = Job(seconds, wanted, upstream)
        chains[str(number)] = seconds + max((chains[other] for other in upstream), default=0.0)
    left = time_left(jobs, devices)
    assert max(chains.values(), default=0.0) - 1e-6 <= left <= sum(job.seconds for job in jobs.values()) + 1e-6


@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_the_time_that_a_bar_names(done: int, left: int) -> None:
    line = tqdm.format_meter(done, done + left, done, prefix="pretrain", unit="step", postfix="loss <3:20")
    progress = parse_progress(line)
    assert progress is not None
    assert bar_left(progress.text) == left  # a step a second


def test_a_bar_that_names_none() -> None:
    assert bar_left("0/10, 00:00<?, ?it/s") is None
    assert bar_left("12.3k, 00:40, 9.0record/s") is None
