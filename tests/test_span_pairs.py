"""Pairs for a model that points: the target is where the answer stands in the source; the others are left out."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import EOS, config, encoded, sentences, write_store

from lightning_modules.batching import Batch
from lightning_modules.errors import PipelineError
from lightning_modules.text_pairs import SpanPairs, find_span

Pairs = list[tuple[list[int], list[int]]]
_few = st.integers(5, 7)  # so few ids that beginnings of the target stand in many places


@given(source=st.lists(_few, max_size=12), target=st.lists(_few, max_size=4))
def test_a_span_is_the_first_of_all_places(source: list[int], target: list[int]) -> None:
    places = [start for start in range(len(source)) if target and source[start : start + len(target)] == target]
    found = find_span(np.array(source, np.uint16), np.array(target, np.uint16))
    assert found == ((places[0], places[0] + len(target) - 1) if places else None)


def span_pairs(folder: Path, pairs: Pairs, seed: int = 1, **changes: int) -> SpanPairs:
    write_store(folder / "source", [source for source, _ in pairs])
    write_store(folder / "target", [target for _, target in pairs])
    settings = {"batch_tokens": 300, "max_source": 20, "max_target": 20, "seed": seed}
    return SpanPairs(folder, config(architecture="encoder"), **(settings | changes))


def texts() -> Pairs:
    """Answers at the beginning, within, at the very end, beyond where the source is cut, nowhere, and empty ones."""
    ids = encoded(sentences()[:120])
    found = [
        (source, source[begin : begin + 1 + number % 5])
        for number, source in enumerate(ids)
        for begin in [number % len(source)]
    ]
    return [*found, (ids[0], ids[1]), ([], []), (ids[2], []), ([], ids[3]), (ids[4][:10], ids[4][:11])]


def shown(batch: Batch) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Each source without padding, and what the target points at in it."""
    pairs = []
    for source, (first, last) in zip(batch.source_BS.tolist(), batch.target_BT.tolist(), strict=True):
        assert 0 <= first <= last < len(source)
        pairs.append((tuple(token for token in source if token), tuple(source[first : last + 1])))
    return pairs


def expected(pairs: Pairs) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    def stands(source: list[int], target: list[int]) -> bool:
        places = range(len(source))
        return bool(target) and any(source[start : start + len(target)] == target for start in places)

    return sorted(((*source[:19], EOS), tuple(target)) for source, target in pairs if stands(source[:19], target))


def test_the_tokens_pointed_at_are_the_target_and_what_cannot_be_pointed_at_is_counted(tmp_path: Path) -> None:
    pairs = texts()
    split, wanted = span_pairs(tmp_path, pairs), expected(pairs)
    assert split.missing == len(pairs) - len(wanted)
    assert split.missing > 5 + 3  # the five strange ones, and answers that were cut off
    assert sorted(pair for batch in split.validation_batches(0, 1) for pair in shown(batch)) == wanted
    read, number = 0, 0
    seen = []
    while read < len(wanted):
        batch = split.training_batch(number, 0, 1)
        seen += shown(batch)
        read, number = read + len(batch.source_BS), number + 1
    assert sorted(seen) == wanted


def test_an_answer_that_is_cut_off_is_left_out(tmp_path: Path) -> None:
    source = list(range(100, 130))
    pairs: Pairs = [(source, source[at : at + 3]) for at in range(28)]
    split = span_pairs(tmp_path, pairs)
    assert split.missing == 28 - 17  # a source has room for 19 tokens and </s>
    spans = sorted(tuple(row) for batch in split.validation_batches(0, 1) for row in batch.target_BT.tolist())
    assert spans == [(at, at + 2) for at in range(17)]
    assert span_pairs(tmp_path / "wide", pairs, max_source=31).missing == 0
    assert span_pairs(tmp_path / "close", pairs, max_source=30).missing == 1


def test_ranks_share_the_pairs_that_are_left(tmp_path: Path) -> None:
    pairs = texts()
    split = span_pairs(tmp_path, pairs)
    shares = [shown(batch) for rank in range(3) for batch in split.validation_batches(rank, 3)]
    assert sorted(pair for share in shares for pair in share) == expected(pairs)
    for number in (0, 2, 40):
        whole = shown(split.training_batch(number, 0, 1))
        assert [shown(split.training_batch(number, rank, 3)) for rank in range(3)] == [whole[n::3] for n in range(3)]


def test_nothing_to_point_at_is_one_line(tmp_path: Path) -> None:
    ids = encoded(sentences()[:10])
    with pytest.raises(PipelineError, match="no target stands in its source") as caught:
        span_pairs(tmp_path, list(zip(ids, reversed(ids), strict=True)))
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)
