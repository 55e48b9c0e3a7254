"""Pairs whose target is a place or a class, and sources that lose their beginning: against their plain definitions."""

from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import tiny
from tiny import EOS, config, encoded, sentences, write_store

from lightning_modules.batching import NO_SPAN, Batch
from lightning_modules.errors import PipelineError
from lightning_modules.text_pairs import ClassPairs, SpanPairs, TextPairs

Pair = tuple[list[int], list[int]]  # a source, and its place: (tokens of the question, first and last of the answer)
Row = tuple[tuple[int, ...], tuple[int, int]]  # a window's ids, and its target
SETTINGS = {"batch_tokens": 300, "max_source": 20, "max_target": 6, "seed": 1}


def span_pairs(folder: Path, pairs: Sequence[Pair], **changes: int) -> SpanPairs:
    write_store(folder / "source", [source for source, _ in pairs])
    write_store(folder / "target", [source[:1] for source, _ in pairs])
    write_store(folder / "place", [place for _, place in pairs])
    return SpanPairs(folder, config(architecture="encoder"), **(SETTINGS | changes))


def short_and_long() -> list[Pair]:
    """Answers everywhere in sources from 5 to 70 tokens, a question of 4 before them; and what has none."""
    ids = [one for one in encoded(sentences()) if len(one) > 4]
    joined = [list(chain(*ids[start : start + 1 + start % 4])) for start in range(1, 121, 2)]
    found = [(source, 4 + 5 * number % (len(source) - 4)) for number, source in enumerate(joined)]
    pairs: list[Pair] = [(source, [4, at, min(at + n % 7, len(source) - 1)]) for n, (source, at) in enumerate(found)]
    return [*pairs, (joined[3], [4]), (joined[0], [4]), (joined[1], []), ([], []), (joined[2], [])]


def rows_of(batch: Batch) -> list[Row]:
    assert all(0 <= first <= last for first, last in batch.target_BT.tolist())
    sources = (tuple(token for token in source if token) for source in batch.source_BS.tolist())
    return list(zip(sources, map(tuple, batch.target_BT.tolist()), strict=True))


def possible_rows(source: list[int], place: list[int], longest: int) -> tuple[list[Row], list[Row]]:
    """The windows with the whole answer, and those without: each of them by hand."""
    context = place[0]
    room = longest - 1
    if len(source) <= room:
        begins, question, width = [context], context, room
    else:
        question = min(context, room // 2)
        width = room - question
        begins = [context]
        while begins[-1] + width < len(source):
            begins.append(begins[-1] + width // 2)
    holding, others = [], []
    for begin in begins:
        ids = (*source[:question], *source[begin : begin + width], EOS)
        where = [place[1] - begin, place[2] - begin] if len(place) == 3 else [-1, -1]
        if where[0] >= 0 and where[1] < min(width, len(source) - begin):
            holding.append((ids, (where[0] + question, where[1] + question)))
        else:
            others.append((ids, (len(ids) - 1, len(ids) - 1)))
    return holding, others


def test_all_windows_with_an_answer_are_read_and_one_without(tmp_path: Path) -> None:
    pairs = short_and_long()
    split = span_pairs(tmp_path, pairs)
    rows = Counter(row for batch in split.validation_batches(0, 1) for row in rows_of(batch))
    usable = [pair for pair in pairs if pair[1] and (len(pair[1]) == 1 or pair[1][2] - pair[1][1] < 6)]
    assert split.missing == len(pairs) - len(usable) > 5
    assert split.unanswerable == 2
    both = drawn = 0
    for source, place in usable:
        holding, others = possible_rows(source, place, 20)
        both += bool(holding and others)
        for row in holding:
            assert rows[row], (source, place)
            rows[row] -= 1
        drawn += bool(others)
    left = list(rows.elements())
    assert both > 10
    allowed = {row for source, place in usable for row in possible_rows(source, place, 20)[1]}
    assert len(left) == drawn
    assert set(left) <= allowed


def test_an_epoch_has_each_window_once_and_ranks_share_them(tmp_path: Path) -> None:
    split = span_pairs(tmp_path, short_and_long())
    wanted = sorted(row for batch in split.validation_batches(0, 1) for row in rows_of(batch))
    numbers = range(split.batches_per_epoch)
    assert sorted(row for n in numbers for row in rows_of(split.training_batch(n, 0, 1))) == wanted
    shares = [batch for rank in range(3) for batch in split.validation_batches(rank, 3)]
    counted = [row for batch in shares if (batch.target_BT != NO_SPAN).all() for row in rows_of(batch)]
    assert sorted(counted) == wanted
    again = span_pairs(tmp_path, short_and_long(), seed=5)
    assert sorted(row for batch in again.validation_batches(0, 1) for row in rows_of(batch)) == wanted


def test_a_question_longer_than_half_a_window_is_cut_and_counted(tmp_path: Path) -> None:
    source = list(range(100, 140))
    split = span_pairs(tmp_path, [(source, [30, 33, 34]), (source[:10], [5, 6, 6])])
    assert split.cut == {"source": 1, "target": 0}
    rows = [row for batch in split.validation_batches(0, 1) for row in rows_of(batch)]
    assert (tuple(source[:9] + source[30:40] + [EOS]), (12, 13)) in rows


def test_nothing_to_point_at_is_one_line(tmp_path: Path) -> None:
    ids = encoded(sentences()[:10])
    with pytest.raises(PipelineError, match="no answer stands in its source") as caught:
        span_pairs(tmp_path, [(source, [] if n % 2 else [0]) for n, source in enumerate(ids)])
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def class_pairs(folder: Path, classes: list[list[int]], **changes: Any) -> ClassPairs:
    ids = encoded(sentences()[: len(classes)])
    write_store(folder / "source", ids)
    write_store(folder / "target", ids)
    write_store(folder / "class", classes)
    return ClassPairs(folder, config(architecture="encoder"), **(SETTINGS | changes))


def test_texts_come_with_the_numbers_of_their_classes_but_those_without_one(tmp_path: Path) -> None:
    classes = [[n % 3] if n % 7 else [] for n in range(50)]
    split = class_pairs(tmp_path, classes)
    assert split.missing == 8
    ids = encoded(sentences()[:50])
    wanted = sorted(((*ids[n][:19], EOS), n % 3) for n in range(50) if n % 7)
    for batches in (
        [split.training_batch(n, 0, 1) for n in range(split.batches_per_epoch)],
        list(split.validation_batches(0, 1)),
    ):
        assert all(batch.targets == len(batch.source_BS) for batch in batches)
        rows = [
            (tuple(token for token in source if token), number)
            for batch in batches
            for source, [number] in zip(batch.source_BS.tolist(), batch.target_BT.tolist(), strict=True)
        ]
        assert sorted(rows) == wanted
    alone = next(iter(class_pairs(tmp_path / "one", [[1]]).validation_batches(1, 2)))
    assert alone.target_BT.tolist() == [[NO_SPAN]]  # a rank without a record takes part with one that does not count
    with pytest.raises(PipelineError, match="no record has a class"):
        class_pairs(tmp_path / "none", [[], []])
    write_store(tmp_path / "class", [[1]])
    with pytest.raises(PipelineError, match="run the tokenize stage again"):
        ClassPairs(tmp_path, config(architecture="encoder"), **SETTINGS)


@pytest.mark.parametrize("kind", ["text", "class"])
def test_a_long_source_loses_its_beginning_where_the_end_matters(tmp_path: Path, kind: str) -> None:
    ids = encoded(sentences()[:40])
    if kind == "text":
        write_store(tmp_path / "source", ids)
        write_store(tmp_path / "target", ids)
        split: TextPairs = TextPairs(tmp_path, config(), **SETTINGS, keep_end=True)
    else:
        split = class_pairs(tmp_path, [[0]] * 40, keep_end=True)
    read = sorted(
        tuple(token for token in source if token)
        for batch in split.validation_batches(0, 1)
        for source in batch.source_BS.tolist()
    )
    assert read == sorted((*one[-19:], EOS) for one in ids)
    assert split.cut["source"] == sum(len(one) > 19 for one in ids) > 5
    if kind == "text":
        targets = [target for batch in split.validation_batches(0, 1) for target in batch.target_BT.tolist()]
        assert sorted(tuple(t for t in target if t) for target in targets) == sorted((*one[:5], EOS) for one in ids)


def test_the_tiny_world_points_at_first_words(tmp_path: Path) -> None:
    split = tiny.pairs_split(tmp_path, architecture="encoder")
    assert {tuple(row) for batch in split.validation_batches(0, 1) for row in batch.target_BT.tolist()} >= {(0, 5)}
