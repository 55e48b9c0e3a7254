"""Length batches: every record once, within the budget, enough for every rank, seeded; little padding.

And rows of ids laid out for each architecture: whole, in order, where it looks for them.
"""

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import config, encoded, sentences

from lightning_modules.batching import dealt, length_batches, make_batch, pad, source_tensors

Ids = npt.NDArray[np.int64]
_lengths = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=120)


def split(pairs: list[tuple[int, int]]) -> tuple[Ids, Ids]:
    source, target = np.array(pairs, dtype=np.int64).T
    return source, target


def padded_tokens(batch: Ids, source: Ids, target: Ids) -> int:
    return len(batch) * int(source[batch].max() + target[batch].max())


@given(pairs=_lengths, budget=st.integers(1, 400), seed=st.integers(0, 9) | st.none())
def test_every_record_once_within_the_budget(pairs: list[tuple[int, int]], budget: int, seed: int | None) -> None:
    source, target = split(pairs)
    batches = length_batches(source, target, budget, None if seed is None else np.random.default_rng(seed))
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(pairs)))
    assert all(len(batch) == 1 or padded_tokens(batch, source, target) <= budget for batch in batches)


@given(pairs=_lengths, budget=st.integers(50, 400), seed=st.integers(0, 99))
def test_the_same_generator_gives_the_same_batches(pairs: list[tuple[int, int]], budget: int, seed: int) -> None:
    one, same = (length_batches(*split(pairs), budget, np.random.default_rng(seed)) for _ in range(2))
    assert [batch.tolist() for batch in one] == [batch.tolist() for batch in same]


def real_lengths() -> tuple[Ids, Ids]:
    """Pairs made of neighbouring sentences: lengths as they come, a source and a target of a pair hardly alike."""
    lengths = np.array([len(ids) + 1 for ids in encoded(sentences())])
    return lengths[0:-1:2], lengths[1::2][: len(lengths[0:-1:2])]


def test_another_generator_mixes_and_orders_differently() -> None:
    source, target = real_lengths()
    one, other = (length_batches(source, target, 1000, np.random.default_rng(seed)) for seed in (1, 2))
    sets = [{frozenset(batch.tolist()) for batch in batches} for batches in (one, other)]
    assert len(sets[0] & sets[1]) < 0.1 * len(sets[0])
    sizes = [int((source + target)[batch].max()) for batch in one]
    assert sizes != sorted(sizes)  # long and short batches take turns


def test_without_a_generator_the_order_is_by_length_and_fixed() -> None:
    source, target = real_lengths()
    batches = length_batches(source, target, 1000, None)
    longest = [int(target[batch].max()) for batch in batches]
    assert all(later > 0.7 * earlier for earlier, later in pairwise(longest))
    same = length_batches(source, target, 1000, None)
    assert [batch.tolist() for batch in batches] == [batch.tolist() for batch in same]


def padding_share(batches: list[Ids], source: Ids, target: Ids) -> float:
    total = sum(padded_tokens(batch, source, target) for batch in batches)
    return 1 - float(source.sum() + target.sum()) / total


def test_little_of_a_batch_is_padding() -> None:
    """Texts and their translations: targets about as long as sources."""
    source, _ = real_lengths()
    rng = np.random.default_rng(0)
    target = np.maximum(np.round(source * rng.normal(1.1, 0.15, len(source))), 1).astype(np.int64)
    shuffled = np.array_split(rng.permutation(len(source)), len(source) // 16)
    assert padding_share(shuffled, source, target) > 0.4  # what random batches would waste on these
    batches = length_batches(source, target, 2048, np.random.default_rng(1))
    assert padding_share(batches, source, target) < 0.15


def test_records_are_dealt_out_and_where_they_do_not_suffice_the_first_stands_in() -> None:
    records = np.arange(10, 17)
    assert sorted(record for part in range(3) for record in dealt(records, part, 3)) == records.tolist()
    assert [dealt(records[:2], part, 4).tolist() for part in range(4)] == [[10], [11], [10], [10]]


@pytest.mark.parametrize("pad_id", [0, 7])
def test_pad_fills_up_at_the_end(pad_id: int) -> None:
    padded = pad([[3], [], [4, 5, 6], np.array([8, 9])], pad_id)
    p = pad_id
    assert padded.tolist() == [[3, p, p], [p, p, p], [4, 5, 6], [8, 9, p]]
    assert padded.dtype == np.int64


_rows = st.lists(st.lists(st.integers(1, 99), max_size=8), min_size=1, max_size=6)


@given(rows=_rows, pad_id=st.sampled_from([0, 100]), pad_left=st.booleans())
def test_a_source_stays_whole_and_in_order_and_what_is_real_is_told(
    rows: list[list[int]], pad_id: int, pad_left: bool
) -> None:
    given_BS = pad(rows, pad_id)
    before = given_BS.copy()
    source_BS, real_BS = source_tensors(given_BS, pad_id, pad_left)
    assert np.array_equal(given_BS, before), "the ids belong to the caller"
    assert tuple(source_BS.shape) == given_BS.shape
    assert (real_BS is None) == (len(set(map(len, rows))) == 1)
    longest = given_BS.shape[1]
    for number, row in enumerate(rows):
        padding = [pad_id] * (longest - len(row))
        assert source_BS[number].tolist() == (padding + row if pad_left else row + padding)
        if real_BS is not None:
            false = [False] * len(padding)
            assert real_BS[number].tolist() == (false + [True] * len(row) if pad_left else [True] * len(row) + false)


@given(pairs=st.lists(st.tuples(*[st.lists(st.integers(1, 99), max_size=6)] * 2), min_size=1, max_size=5))
def test_padding_is_moved_for_a_decoder_alone_where_source_and_target_meet(
    pairs: list[tuple[list[int], list[int]]],
) -> None:
    source, target = (pad(side, 0) for side in zip(*pairs, strict=True))
    batches = {
        name: make_batch(source, target, config(architecture=name))
        for name in ("encoder", "decoder", "encoder_decoder")
    }
    for name, made in batches.items():
        assert made.target_BT.tolist() == target.tolist()
        if name != "decoder":
            assert made.source_BS.tolist() == source.tolist()
    joined = torch.cat([batches["decoder"].source_BS, batches["decoder"].target_BT], dim=1)
    for row_L, (read, written) in zip(joined.tolist(), pairs, strict=True):
        begin = source.shape[1] - len(read)
        assert row_L[begin : begin + len(read) + len(written)] == read + written


def test_every_second_row_of_a_batch_is_a_batch_too() -> None:
    """The share of a rank is cut out of the whole batch: a view with steps."""
    source = pad([[1, 2, 3], [4], [5, 6], [7, 8, 9]], 0)
    share = make_batch(source[1::2], source[1::2], config(architecture="decoder"))
    assert share.source_BS.tolist() == [[0, 0, 4], [7, 8, 9]]
    assert share.target_BT.tolist() == [[4, 0, 0], [7, 8, 9]]
