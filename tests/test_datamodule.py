"""Batches from real token stores: the text in whole, the same by number, shared out by rank, taken up at any step."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import EOS, config, encoded, equal, rows_split, sentences, write_store

from lightning_modules import text_pairs as module_of_pairs
from lightning_modules.batching import Batch, length_batches
from lightning_modules.datamodule import TextDataModule
from lightning_modules.errors import PipelineError
from lightning_modules.text_pairs import TextPairs


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


def epoch_lengths(split: TextPairs, epochs: int) -> list[int]:
    """How many batches each epoch has, counted by records."""
    counts, number = [], 0
    for _ in range(epochs):
        seen = counted = 0
        while seen < len(split.source):
            seen += len(split.training_batch(number, 0, 1).source_BS)
            counted, number = counted + 1, number + 1
        assert seen == len(split.source)
        counts.append(counted)
    return counts


def test_each_epoch_and_each_validation_hold_every_pair_once_cut_and_ended(tmp_path: Path) -> None:
    texts = pairs()
    split, expected = text_pairs(tmp_path, texts), cut_pairs(texts)
    assert sorted(pair for batch in split.validation_batches(0, 1) for pair in unpadded(batch)) == expected
    number = 0
    for count in epoch_lengths(split, 4):
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


@pytest.mark.parametrize("parts", [2, 3, 12])
def test_every_part_has_a_share_and_together_they_have_all(tmp_path: Path, parts: int) -> None:
    """Where a batch has fewer pairs than there are parts, the others read one that counts for nothing."""
    texts = pairs()
    split = text_pairs(tmp_path, texts)
    idle = 0
    for number in range(sum(epoch_lengths(split, 2))):
        whole = split.training_batch(number, 0, 1)
        shares = [split.training_batch(number, part, parts) for part in range(parts)]
        assert all(len(share.source_BS) for share in shares)
        assert {share.targets for share in shares} == {whole.targets}
        assert whole.targets == sum(int((share.target_BT != 0).sum()) for share in shares)
        read = [pair for share in shares for pair in unpadded(share) if pair[1]]
        assert sorted(read) == sorted(unpadded(whole))
        idle += sum(not bool((share.target_BT != 0).any()) for share in shares)
    assert idle or parts < 12
    validation = [list(split.validation_batches(part, parts)) for part in range(parts)]
    assert len({len(batches) for batches in validation}) == 1  # else a rank waits for ever
    read = [pair for batches in validation for batch in batches for pair in unpadded(batch) if pair[1]]
    assert sorted(read) == cut_pairs(texts)


def test_padding_is_counted(tmp_path: Path) -> None:
    split = text_pairs(tmp_path, pairs())
    for number in range(10):
        batch = split.training_batch(number, 0, 1)
        assert batch.padding == int((batch.source_BS == 0).sum()) + int((batch.target_BT == 0).sum())


def test_pairs_are_a_function_of_seed_and_number_in_any_order_of_asking(tmp_path: Path) -> None:
    texts = pairs()
    one, same, other = (text_pairs(tmp_path / str(n), texts, seed=s) for n, s in enumerate((1, 1, 2)))
    last = sum(epoch_lengths(one, 5))
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

    monkeypatch.setattr(module_of_pairs, "length_batches", counting)
    split = text_pairs(tmp_path, pairs())
    lengths = epoch_lengths(split, 6)
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

    global_step, global_rank, world_size, accumulate_grad_batches, strategy = 0, 0, 1, 1, None


def test_the_training_loader_starts_at_the_trainers_step(tmp_path: Path) -> None:
    split, trainer = rows_split(tmp_path), _Step()
    module = TextDataModule(split, split)
    module.trainer = trainer  # type: ignore[assignment]
    loader = module.train_dataloader()
    trainer.global_step = 7  # restored after the loader was made
    for number, batch in zip(range(7, 12), loader, strict=False):
        assert equal(batch, split.training_batch(number, 0, 1))
    trainer.global_rank, trainer.world_size, trainer.accumulate_grad_batches = 1, 2, 3
    asked = [(number, part) for number in (7, 8) for part in (1, 3, 5)]
    for (number, part), batch in zip(asked, module.train_dataloader(), strict=False):
        assert equal(batch, split.training_batch(number, part, 6))
    trainer.global_rank, trainer.world_size = 0, 1
    validation = list(module.val_dataloader())
    assert all(equal(a, b) for a, b in zip(validation, split.validation_batches(0, 1), strict=True))
