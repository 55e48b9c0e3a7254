"""Samples of what was dropped: the same whatever the order and the number of workers."""

import pickle
import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from stages.samples import Largest, Samples

MET = st.tuples(
    st.sampled_from(["pretraining", "translation"]),
    st.sampled_from(["web", "books"]),
    st.sampled_from(["empty", "languages"]),
    st.text("0123456789abcdef", min_size=1, max_size=2),
    st.text(max_size=3),
    st.sampled_from(["", "de"]),
)


@given(st.lists(MET, max_size=60), st.integers(1, 4), st.randoms())
def test_order_and_workers_change_nothing(met: list[tuple[str, ...]], most: int, chance: random.Random) -> None:
    expected = [
        {"purpose": one[0], "source": one[1], "filter": one[2], "text": one[4]} | ({"detail": one[5]} if one[5] else {})
        for kind in sorted({one[:3] for one in met})
        for one in sorted({one for one in met if one[:3] == kind})[:most]
    ]
    workers = [Samples(most) for _ in range(3)]
    for one in met:
        chance.choice(workers).add(*one)  # type: ignore[arg-type]
    chance.shuffle(workers)
    for other in workers[1:]:
        workers[0].merge(pickle.loads(pickle.dumps(other)))
    assert workers[0].lines() == expected


def test_long_texts_are_cut() -> None:
    samples = Samples()
    samples.add("pretraining", "web", "languages", "0", "x" * 501, "y" * 501)
    assert samples.lines() == [
        {"purpose": "pretraining", "source": "web", "filter": "languages", "text": "x" * 500, "detail": "y" * 500}
    ]


@given(files=st.lists(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 50))), max_size=4))
def test_the_largest_group_is_found_in_passing_and_no_more_is_said_than_is_sure(
    files: list[list[tuple[str, int]]],
) -> None:
    together, counts = Largest(), Counter[str]()
    for number, texts in enumerate(files):
        one = Largest()
        for group, characters in texts:
            one.add(group, f"{number}.txt", characters)
            counts[group] += characters
        together.merge(one)
    assert together.whole == counts.total()
    assert together.sure <= counts[together.group]
    for group, characters in counts.items():
        if 2 * characters > together.whole:
            assert together.group == group
            assert together.sure >= 2 * characters - together.whole
