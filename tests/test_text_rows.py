"""Rows of text: the text in whole, the same by number however far on, shared out by rank; documents kept apart."""

import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import EOS, FIRST_SENTINEL, VOCAB_SIZE, config, encoded, rows_of, sentences, write_store

from lightning_modules import text_rows as text_rows_module
from lightning_modules.batching import Batch
from lightning_modules.errors import PipelineError
from lightning_modules.objectives import CausalLM, Objective, SpanCorruption
from lightning_modules.text_rows import TextRows, WindowOrder, permuted
from lightning_modules.token_store import StoreMeta, TokenStore, write_meta

LENGTH, ROWS = 32, 8
PACKINGS = ["joined", "best_fit"]


@pytest.fixture(params=["one group", "many groups"])
def groups(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of these tests fit into one group of windows; here also as if they were large."""
    if request.param == "many groups":
        monkeypatch.setattr(text_rows_module, "WINDOW_TOKENS", 1)
        monkeypatch.setattr(text_rows_module, "WINDOW_ROWS", 3)
        monkeypatch.setattr(text_rows_module, "GROUP", 4)


def text_rows(
    folder: Path,
    documents: list[list[int]],
    rows: int = ROWS,
    seed: int = 1,
    most: int = 4,
    objective: Objective | None = None,
    packing: str = "joined",
    **changes: Any,
) -> TextRows:
    objective = objective or SpanCorruption(0.2, 2.0, FIRST_SENTINEL, 64, EOS)
    return TextRows(write_store(folder, documents), config(**changes), objective, LENGTH, rows, most, seed, packing)


def plain(batch: Batch) -> list[Any]:
    """All that a batch holds, to be compared."""
    documents = None if batch.documents is None else [side.tolist() for side in batch.documents]
    real = None if batch.real_BS is None else batch.real_BS.tolist()
    return [batch.source_BS.tolist(), batch.target_BT.tolist(), real, documents, batch.targets]


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
    assert all(plain(one.training_batch(number, 0, 1)) == plain(backwards[number]) for number in range(40))
    assert plain(one.training_batch(0, 0, 1)) != plain(other.training_batch(0, 0, 1))


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("parts", [2, 3, 8])
def test_the_parts_are_the_whole_batch_dealt_out(tmp_path: Path, parts: int, packing: str) -> None:
    split = text_rows(tmp_path, documents(), packing=packing)
    for number in (0, 3, 30):
        whole = split.training_batch(number, 0, 1)
        assert whole.targets == int((whole.target_BT != 0).sum())
        shares = [split.training_batch(number, part, parts) for part in range(parts)]
        for part, share in enumerate(shares):
            assert share.targets == whole.targets
            assert torch.equal(share.source_BS, whole.source_BS[part::parts])
            assert torch.equal(share.target_BT, whole.target_BT[part::parts])
            assert (share.documents is None) == (packing == "joined")
            for side, of_whole in zip(share.documents or (), whole.documents or (), strict=True):
                assert torch.equal(side, of_whole[part::parts])
        assert sum(len(share.source_BS) for share in shares) == ROWS


def test_parts_without_a_row_have_nothing_to_predict(tmp_path: Path) -> None:
    split = text_rows(tmp_path, documents(), packing="best_fit")
    share, whole = split.training_batch(0, ROWS, ROWS + 1), split.training_batch(0, 0, 1)
    assert share.targets == whole.targets
    assert len(share.source_BS) == 1
    assert not share.target_BT.any()


def test_validation_rows_are_the_same_each_time_and_shared_out(tmp_path: Path) -> None:
    texts = documents()
    split, expected = text_rows(tmp_path, texts, most=3), joined_rows(texts)
    once, again = (list(split.validation_batches(0, 1)) for _ in range(2))
    assert len(once) == 3
    assert list(map(plain, once)) == list(map(plain, again))
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


def test_a_decoders_rows_of_plain_text_have_an_empty_source(tmp_path: Path) -> None:
    texts = documents()
    split = text_rows(tmp_path, texts, objective=CausalLM(), architecture="decoder")
    batches = [*(split.training_batch(number, 0, 1) for number in range(3)), *split.validation_batches(0, 1)]
    expected = set(joined_rows(texts))
    for batch in batches:
        assert (tuple(batch.source_BS.shape), batch.real_BS) == ((ROWS, 0), None)
        assert {tuple(row) for row in batch.target_BT.tolist()} <= expected


# Packed documents


def numbered(count: int, seed: int, longest: int = 3 * LENGTH) -> list[list[int]]:
    """Documents of which no two tokens are the same: a token tells where it is from. Some are empty."""
    sizes = np.random.default_rng(seed).lognormal(2.5, 1.0, count).astype(int).clip(0, longest)
    ids = iter(range(100, 100 + sizes.sum()))
    return [[next(ids) for _ in range(size)] for size in sizes]


def epoch_rows(split: TextRows, epoch: int = 0) -> tuple[np.ndarray, np.ndarray | None]:
    """All rows of an epoch as a decoder reads them, and their documents."""
    per_epoch = split.available // split.rows
    batches = [split.training_batch(number, 0, 1) for number in range(epoch * per_epoch, (epoch + 1) * per_epoch)]
    rows = np.concatenate([batch.target_BT.numpy() for batch in batches])
    if batches[0].documents is None:
        return rows, None
    assert all(batch.documents is not None and batch.documents[0].shape == (split.rows, 0) for batch in batches)
    return rows, np.concatenate([batch.documents[1].numpy() for batch in batches if batch.documents])


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.usefixtures("groups")
def test_every_token_stands_once_in_an_epoch(tmp_path: Path, packing: str, seed: int) -> None:
    texts = numbered(150, seed)
    split = text_rows(tmp_path, texts, 1, seed, objective=CausalLM(), packing=packing, architecture="decoder")
    joined = [token for text in texts for token in (*text, EOS)]
    expected = Counter(joined[: len(joined) // LENGTH * LENGTH])
    epochs = [epoch_rows(split, epoch)[0] for epoch in (0, 1, 7)]
    assert all(Counter(rows.ravel().tolist()) == expected for rows in epochs)
    assert not np.array_equal(epochs[0], epochs[1])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.usefixtures("groups")
def test_what_has_one_number_is_one_stretch_of_one_document(tmp_path: Path, seed: int) -> None:
    texts = numbered(150, seed)
    at = {token: (number, place) for number, text in enumerate(texts) for place, token in enumerate(text)}
    split = text_rows(tmp_path, texts, objective=CausalLM(), packing="best_fit", architecture="decoder")
    rows, documents = epoch_rows(split)
    assert documents is not None
    for row, numbers in zip(rows, documents, strict=True):
        assert numbers.tolist() == sorted(numbers.tolist())
        assert set(numbers.tolist()) == set(range(numbers[-1] + 1))
        for number in range(numbers[-1] + 1):
            stretch = row[numbers == number].tolist()
            assert EOS not in stretch[:-1]
            places = [at[token] for token in stretch if token != EOS]
            if places:
                (document, first) = places[0]
                assert places == [(document, first + step) for step in range(len(places))]
                ended = stretch[-1] == EOS
                assert not ended or places[-1][1] == len(texts[document]) - 1


def test_fewer_documents_that_would_fit_are_cut(tmp_path: Path) -> None:
    texts = numbered(1000, 0, longest=LENGTH - 1)
    at = {token: number for number, text in enumerate(texts) for token in text}
    counts = []
    for packing in PACKINGS:
        objective, folder = CausalLM(), tmp_path / packing
        split = text_rows(folder, texts, 1, objective=objective, packing=packing, architecture="decoder")
        rows, _ = epoch_rows(split)
        pieces = Counter(number for row in rows for number in {at[token] for token in row.tolist() if token != EOS})
        counts.append(sum(count > 1 for count in pieces.values()))
    assert counts[1] < 0.3 * counts[0]


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.usefixtures("groups")
def test_batches_are_the_same_in_any_order_of_asking(tmp_path: Path, packing: str) -> None:
    texts = numbered(150, 0)
    changes: dict[str, Any] = {"objective": CausalLM(), "packing": packing, "architecture": "decoder"}
    one, other = (text_rows(tmp_path / str(n), texts, **changes) for n in range(2))
    numbers = range(3 * (one.available // ROWS))
    asked = {
        number: plain(other.training_batch(number, 0, 1)) for number in np.random.default_rng(0).permutation(numbers)
    }
    assert all(plain(one.training_batch(number, 0, 1)) == asked[number] for number in numbers)
    assert [plain(batch) for batch in one.validation_batches(0, 1)] == [
        plain(batch) for batch in text_rows(tmp_path / "2", texts, seed=2, **changes).validation_batches(0, 1)
    ]


def test_windows_take_all_places_and_rows_are_counted() -> None:
    for rows in (1, 2, 3, 7, 40, 41, 95, 96, 97, 1000):
        orders = [WindowOrder(rows, 3, (1, epoch)) for epoch in range(20)]
        for order in orders:
            windows = [order.window(place) for place in range(order.count)]
            assert sorted(windows) == list(range(-(-rows // 3)))
            owners = [place for place, window in enumerate(windows) for _ in range(min(3, rows - 3 * window))]
            assert [order.place(row) for row in range(rows)] == owners
            assert [order.first_row(place) for place in range(order.count)] == [
                sum(owner < place for owner in owners) for place in range(order.count)
            ]
        assert rows < 40 or len({tuple(map(order.window, range(order.count))) for order in orders}) == 20


def test_places_are_random() -> None:
    count, keys = 40, 3000
    places = np.array([permuted(7, count, (key,)) for key in range(keys)])
    assert abs(np.bincount(places, minlength=count) - keys / count).max() < 5 * (keys / count) ** 0.5
    together = np.array([permuted(8, count, (key,)) for key in range(keys)]) - places
    assert np.bincount(together % count, minlength=count)[1:].max() < 1.6 * keys / count


# What starting costs


def large_store(folder: Path, documents: int, tokens: int) -> TokenStore:
    """A store of zeros that takes no space on the disk, besides the index."""
    folder.mkdir()
    np.linspace(0, tokens, documents + 1).astype(np.int64).tofile(folder / "00000.idx")
    with (folder / "00000.bin").open("wb") as file:
        file.truncate(2 * tokens)
    write_meta(folder, StoreMeta("uint16", VOCAB_SIZE, "f" * 64, 1, documents, tokens, utf8_bytes=1))
    return TokenStore(folder)


@pytest.mark.parametrize("packing", PACKINGS)
def test_starting_and_going_on_cost_the_same_for_any_text(tmp_path: Path, packing: str) -> None:
    objective, most = CausalLM(), []
    for name, documents in (("large", 20_000), ("vast", 2_000_000)):
        large_store(tmp_path / name, documents, 1000 * documents)
        tracemalloc.start()
        shape = config(architecture="decoder")
        split = TextRows(TokenStore(tmp_path / name), shape, objective, 1024, 16, 4, 1, packing)
        _, peak = tracemalloc.get_traced_memory()
        assert peak < 1 << 18
        assert plain(split.training_batch(10**9, 0, 1)) != plain(split.training_batch(0, 0, 1))
        assert len(list(split.validation_batches(0, 1))) == 4
        most.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert most[1] < 1.1 * most[0] < 2**27
