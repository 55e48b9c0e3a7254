"""What the loaders' benchmark compares: each way gives rows of the same text, in random order, as tensors of int64."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import loader

ROWS, LENGTH = 4, 16


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """What each way gives as the batches of an epoch, the last one left out: one way has read the first before."""
    monkeypatch.setattr(loader, "TOKENS", 1 << 13)
    store = loader.random_store(tmp_path / "store", "sentences")
    ways = loader.reading_ways(store, tmp_path / "rows.arrow", ROWS, LENGTH)
    batches = (1 << 13) // LENGTH // ROWS - 1
    return {name: [batch(number) for number in range(batches)] for name, (batch, _) in ways.items()}


def test_all_ways_read_rows_of_the_same_text(read: dict[str, list[Any]], tmp_path: Path) -> None:
    store = loader.TokenStore(tmp_path / "store")
    joined = [token for document in range(len(store)) for token in (*store[document].tolist(), loader.CONFIG.eos_id)]
    text = Counter(tuple(row) for row in np.reshape(joined, (-1, LENGTH)).tolist())
    for name in ("arrow", "numpy", "plain", "Trainer"):
        assert {(tuple(batch.shape), batch.dtype) for batch in read[name]} == {((ROWS, LENGTH), torch.int64)}
        rows = Counter(tuple(row) for batch in read[name] for row in batch.tolist())
        assert (rows <= text, rows.total()) == (True, text.total() - ROWS)
    ours = Counter(tuple(row) for batch in read["joined"] for row in batch.target_BT.tolist())
    assert (ours <= text, ours.total()) == (True, text.total() - ROWS)


def test_ways_that_are_told_the_order_give_the_same_batches(read: dict[str, list[Any]]) -> None:
    for name in ("numpy", "plain"):
        assert all(torch.equal(one, other) for one, other in zip(read["arrow"], read[name], strict=True))
    assert not torch.equal(read["arrow"][0], read["Trainer"][0])
