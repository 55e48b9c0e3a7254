"""Batches from real token stores: the text in whole, the same by number, shared out by rank, taken up at any step."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import EOS, FIRST_SENTINEL, config, encoded, equal, rows_of, sentences, write_store

from lightning_modules import datamodule
from lightning_modules.batching import Batch, length_batches
from lightning_modules.datamodule import TextDataModule, TextPairs, TextRows
from lightning_modules.errors import PipelineError
from lightning_modules.objectives import CausalLM, Objective, SpanCorruption

LENGTH, ROWS = 32, 8


def text_rows(
    folder: Path,
    documents: list[list[int]],
    rows: int = ROWS,
    seed: int = 1,
    most: int = 4,
    objective: Objective | None = None,
    **changes: Any,
) -> TextRows:
    objective = objective or SpanCorruption(0.2, 2.0, FIRST_SENTINEL, 64, EOS)
    return TextRows(write_store(folder, documents), config(**changes), objective, LENGTH, rows, most, seed)


def documents(count: int = 120) -> list[list[int]]:
    """Real sentences, and the ugly ones: empty, of one token, longer than a row."""
    ids = encoded(sentences()[:count])
    return [[], *ids[:50], [], [], [77], [ids[50][0]] * 100, *ids[50:], []]


def joined_rows(texts: list[list[int]]) -> list[tuple[int, ...]]:
    whole = [token for text in texts for token in (*text, EOS)]
    return [tuple(whole[at : at + LENGTH]) for at in range(0, len(whole) - LENGTH + 1, LENGTH)]


def test_an_epoch_of_rows_is_the_joined_text_each_row_once(tmp_path: Path) -> None:
    texts = documents()
    split, expected = text_rows(tmp_path, texts), joined_rows(texts)
    per_epoch = len(expected) // ROWS
    assert len(expected) % ROWS  # some rows are left over, else the test shows less
    for epoch in (0, 1, 5):
        numbers = range(epoch * per_epoch, (epoch + 1) * per_epoch)
        read = [row for number in numbers for row in rows_of(split.training_batch(number, 0, 1))]
        assert len(read) == per_epoch * ROWS
        rest = list(expected)
        for row in read:
            rest.remove(row)
        assert len(rest) == len(expected) % ROWS


def test_epochs_differ_in_order_and_corruption(tmp_path: Path) -> None:
    texts = documents()
    split, per_epoch = text_rows(tmp_path, texts), len(joined_rows(texts)) // ROWS
    first, second = (rows_of(split.training_batch(number, 0, 1)) for number in (0, per_epoch))
    assert first != second
    once = text_rows(tmp_path / "one", texts, rows=len(joined_rows(texts)))  # a batch an epoch
    first_epoch, second_epoch = (once.training_batch(number, 0, 1) for number in (0, 1))
    sources = [
        dict(zip(rows_of(batch), batch.source_BS.tolist(), strict=True)) for batch in (first_epoch, second_epoch)
    ]
    differ = sum(sources[0][row] != sources[1][row] for row in sources[0])
    assert differ > 0.9 * len(sources[0])


def test_a_batch_is_a_function_of_seed_and_number(tmp_path: Path) -> None:
    texts = documents()
    one, same, other = (text_rows(tmp_path / str(n), texts, seed=s) for n, s in enumerate((1, 1, 2)))
    backwards = {number: same.training_batch(number, 0, 1) for number in reversed(range(40))}
    assert all(equal(one.training_batch(number, 0, 1), backwards[number]) for number in range(40))
    assert not equal(one.training_batch(0, 0, 1), other.training_batch(0, 0, 1))


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_the_ranks_shares_are_the_batch_of_one_rank(tmp_path: Path, ranks: int) -> None:
    split = text_rows(tmp_path, documents())
    for number in (0, 3, 30):
        whole = split.training_batch(number, 0, 1)
        shares = [split.training_batch(number, rank, ranks) for rank in range(ranks)]
        for rank, share in enumerate(shares):
            assert torch.equal(share.source_BS, whole.source_BS[rank::ranks])
            assert torch.equal(share.target_BT, whole.target_BT[rank::ranks])
        assert sum(len(share.source_BS) for share in shares) == ROWS


def test_validation_rows_are_the_same_each_time_and_shared_out(tmp_path: Path) -> None:
    texts = documents()
    split, expected = text_rows(tmp_path, texts, most=3), joined_rows(texts)
    once, again = (list(split.validation_batches(0, 1)) for _ in range(2))
    assert len(once) == 3
    assert all(equal(a, b) for a, b in zip(once, again, strict=True))
    rows = [row for batch in once for row in rows_of(batch)]
    assert set(rows) <= set(expected)
    shared = zip(split.validation_batches(0, 2), split.validation_batches(1, 2), strict=True)
    for batch, shares in zip(once, shared, strict=True):
        assert sorted(rows_of(batch)) == sorted(rows_of(shares[0]) + rows_of(shares[1]))
    plenty = text_rows(tmp_path / "more", texts, most=1000)
    assert len(list(plenty.validation_batches(0, 1))) == len(expected) // ROWS


@pytest.mark.parametrize("texts", [[], [[]], [[7] * 100]])
def test_too_little_text_is_one_line_that_names_the_keys(tmp_path: Path, texts: list[list[int]]) -> None:
    with pytest.raises(PipelineError, match=r"pretrain\.sequence_length 32, .*pretrain\.batch_size \(8\)") as caught:
        text_rows(tmp_path, texts)
    assert "\n" not in str(caught.value)


def text_pairs(
    folder: Path, pairs: list[tuple[list[int], list[int]]], architecture: str = "encoder_decoder", **changes: int
) -> TextPairs:
    write_store(folder / "source", [source for source, _ in pairs])
    write_store(folder / "target", [target for _, target in pairs])
    settings = {"batch_tokens": 300, "max_source": 40, "max_target": 20, "seed": 1}
    return TextPairs(folder, config(architecture=architecture), **(settings | changes))


def pairs(count: int = 150) -> list[tuple[list[int], list[int]]]:
    ids = encoded(sentences()[: 2 * count])
    return [([], []), ([70], []), *zip(ids[:count], ids[count:], strict=True)]


def unpadded(batch: Batch) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    def texts(side: torch.Tensor) -> list[tuple[int, ...]]:
        assert bool((side[:, 1:][side[:, :-1] == 0] == 0).all())  # padding only at the end
        return [tuple(token for token in row if token) for row in side.tolist()]

    return list(zip(texts(batch.source_BS), texts(batch.target_BT), strict=True))


def cut_pairs(texts: list[tuple[list[int], list[int]]]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    return sorted(((*source[:39], EOS), (*target[:19], EOS)) for source, target in texts)


def epoch_lengths(split: TextPairs, ranks: int, epochs: int) -> list[int]:
    """How many batches each epoch has, counted by records."""
    counts, number = [], 0
    for _ in range(epochs):
        seen = counted = 0
        while seen < len(split.source):
            seen += sum(len(split.training_batch(number, rank, ranks).source_BS) for rank in range(ranks))
            counted, number = counted + 1, number + 1
        assert seen == len(split.source)
        counts.append(counted)
    return counts


def test_each_epoch_and_each_validation_hold_every_pair_once_cut_and_ended(tmp_path: Path) -> None:
    texts = pairs()
    split, expected = text_pairs(tmp_path, texts), cut_pairs(texts)
    assert sorted(pair for batch in split.validation_batches(0, 1) for pair in unpadded(batch)) == expected
    number = 0
    for count in epoch_lengths(split, 1, 4):
        batches = [split.training_batch(n, 0, 1) for n in range(number, number + count)]
        assert sorted(pair for batch in batches for pair in unpadded(batch)) == expected
        number += count


def test_what_is_cut_is_counted(tmp_path: Path) -> None:
    texts = pairs()
    split = text_pairs(tmp_path, texts)
    assert split.cut == {
        "source": sum(len(source) + 1 > 40 for source, _ in texts),
        "target": sum(len(target) + 1 > 20 for _, target in texts),
    }
    assert min(split.cut.values()) > 0
    assert text_pairs(tmp_path / "wide", texts, max_source=500, max_target=500).cut == {"source": 0, "target": 0}


def test_what_is_real_of_the_source_is_told(tmp_path: Path) -> None:
    split = text_pairs(tmp_path, pairs())
    batches = list(split.validation_batches(0, 1))
    for batch in batches:
        real_BS = batch.source_BS != 0
        if batch.real_BS is None:
            assert bool(real_BS.all())
        else:
            assert torch.equal(batch.real_BS, real_BS)
            assert not bool(real_BS.all())
    assert {batch.real_BS is None for batch in batches} == {True, False}


def test_a_decoders_batches_are_the_others_with_the_sources_padding_first(tmp_path: Path) -> None:
    texts = pairs()
    ours = text_pairs(tmp_path, texts, "decoder")
    other = text_pairs(tmp_path, texts)
    for number in range(30):
        one, two = ours.training_batch(number, 0, 1), other.training_batch(number, 0, 1)
        assert torch.equal(one.target_BT, two.target_BT)
        assert one.source_BS.shape == two.source_BS.shape
        for left, right in zip(one.source_BS, two.source_BS, strict=True):
            assert left[left != 0].tolist() == right[right != 0].tolist()
            assert left[-1] == EOS
        if one.real_BS is not None:
            assert torch.equal(one.real_BS, one.source_BS != 0)


def test_a_decoders_rows_of_plain_text_have_an_empty_source(tmp_path: Path) -> None:
    texts = documents()
    split = text_rows(tmp_path, texts, objective=CausalLM(), architecture="decoder")
    batches = [*(split.training_batch(number, 0, 1) for number in range(3)), *split.validation_batches(0, 1)]
    expected = set(joined_rows(texts))
    for batch in batches:
        assert (tuple(batch.source_BS.shape), batch.real_BS) == ((ROWS, 0), None)
        assert {tuple(row) for row in batch.target_BT.tolist()} <= expected


@pytest.mark.parametrize("ranks", [2, 3])
def test_every_rank_has_a_share_and_together_they_have_all(tmp_path: Path, ranks: int) -> None:
    texts = pairs()
    split = text_pairs(tmp_path, texts)
    lengths = epoch_lengths(split, ranks, 2)
    for numbers in (range(lengths[0]), range(lengths[0], sum(lengths))):
        shares = [split.training_batch(number, rank, ranks) for number in numbers for rank in range(ranks)]
        assert all(len(share.source_BS) for share in shares)
        assert sorted(pair for share in shares for pair in unpadded(share)) == cut_pairs(texts)
    whole = [list(split.validation_batches(rank, ranks)) for rank in range(ranks)]
    assert len({len(batches) for batches in whole}) == 1  # else a rank waits for ever
    assert sorted(pair for batches in whole for batch in batches for pair in unpadded(batch)) == cut_pairs(texts)


def test_pairs_are_a_function_of_seed_and_number_in_any_order_of_asking(tmp_path: Path) -> None:
    texts = pairs()
    one, same, other = (text_pairs(tmp_path / str(n), texts, seed=s) for n, s in enumerate((1, 1, 2)))
    last = sum(epoch_lengths(one, 1, 5))
    rng = np.random.default_rng(0)
    asked = {number: same.training_batch(number, 0, 1) for number in rng.permutation(last).tolist()}
    assert all(equal(one.training_batch(number, 0, 1), batch) for number, batch in asked.items())
    assert equal(text_pairs(tmp_path / "late", texts).training_batch(last, 0, 1), one.training_batch(last, 0, 1))
    assert not all(equal(one.training_batch(n, 0, 1), other.training_batch(n, 0, 1)) for n in range(5))


def test_no_epoch_is_sorted_twice_while_reading_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sorting all epochs so far at each step would make late steps slower and slower."""
    sorted_times = []

    def counting(*arguments: Any) -> Any:
        sorted_times.append(1)
        return length_batches(*arguments)

    monkeypatch.setattr(datamodule, "length_batches", counting)
    split = text_pairs(tmp_path, pairs())
    lengths = epoch_lengths(split, 1, 6)
    assert len(sorted_times) == 6
    split.training_batch(sum(lengths) - 1, 0, 1)
    assert len(sorted_times) == 6
    text_pairs(tmp_path / "resumed", pairs()).training_batch(sum(lengths) - 1, 0, 1)
    assert len(sorted_times) == 12


def test_no_pairs_or_halves_of_pairs_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="no pairs"):
        text_pairs(tmp_path, [])
    text_pairs(tmp_path / "whole", pairs(5))
    write_store(tmp_path / "whole" / "target", [[70]])
    with pytest.raises(PipelineError, match="halves of pairs"):
        TextPairs(tmp_path / "whole", config(), 300, 40, 20, 1)
    with pytest.raises(PipelineError, match="is not a token store"):
        TextPairs(tmp_path / "nowhere", config(), 300, 40, 20, 1)


class _Step:
    """The trainer's part that the loader reads."""

    global_step, global_rank, world_size = 0, 0, 1


def test_the_training_loader_starts_at_the_trainers_step(tmp_path: Path) -> None:
    split, trainer = text_rows(tmp_path, documents()), _Step()
    module = TextDataModule(split, split)
    module.trainer = trainer  # type: ignore[assignment]
    loader = module.train_dataloader()
    trainer.global_step = 7  # restored after the loader was made
    for number, batch in zip(range(7, 12), loader, strict=False):
        assert equal(batch, split.training_batch(number, 0, 1))
    validation = list(module.val_dataloader())
    assert all(equal(a, b) for a, b in zip(validation, split.validation_batches(0, 1), strict=True))
