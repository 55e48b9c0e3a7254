"""Token stores: what is written comes back, in any sharding, by document and joined; a damaged store is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_modules.errors import PipelineError
from lightning_modules.token_store import StoreMeta, TokenStore, token_dtype, write_meta, write_shard

Documents = list[list[int]]
_documents = st.lists(st.lists(st.integers(0, 69_999), max_size=12), max_size=12)


def write_store(folder: Path, shards: list[Documents], vocab_size: int) -> TokenStore:
    folder.mkdir(parents=True, exist_ok=True)
    dtype = token_dtype(vocab_size)
    written = [write_shard(folder, number, documents, dtype) for number, documents in enumerate(shards)]
    documents, tokens = (sum(column) for column in zip(*written, strict=True)) if written else (0, 0)
    write_meta(folder, StoreMeta(dtype, vocab_size, "f" * 64, len(shards), documents, tokens, utf8_bytes=1))
    return TokenStore(folder)


@given(shards=st.lists(_documents, max_size=4))
def test_every_document_comes_back(tmp_path_factory: pytest.TempPathFactory, shards: list[Documents]) -> None:
    store = write_store(tmp_path_factory.mktemp("store"), shards, vocab_size=70_000)
    expected = [document for shard in shards for document in shard]
    assert [document.tolist() for document in (store[i] for i in range(len(store)))] == expected
    assert store.lengths().tolist() == list(map(len, expected))
    assert store.meta.tokens == sum(map(len, expected))


@given(shards=st.lists(_documents, max_size=4), data=st.data())
def test_any_stretch_of_the_joined_text_is_read(
    tmp_path_factory: pytest.TempPathFactory, shards: list[Documents], data: st.DataObject
) -> None:
    store = write_store(tmp_path_factory.mktemp("store"), shards, vocab_size=70_000)
    joined = [token for shard in shards for document in shard for token in (*document, 70_001)]
    ends = np.cumsum([len(document) + 1 for shard in shards for document in shard]).tolist()
    assert store.joined_length == len(joined)
    start = data.draw(st.integers(0, len(joined)))
    end = data.draw(st.integers(start, len(joined)))
    ids, found = store.joined(start, end, eos_id=70_001)
    assert ids.tolist() == joined[start:end]
    assert found.tolist() == [place - start for place in ends if start < place <= end]
    for wrong in ((start, len(joined) + 1), (-1, end), (end + 1, end)):
        with pytest.raises(IndexError):
            store.joined(*wrong, eos_id=2)


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_536, np.uint16), (65_537, np.uint32)])
def test_ids_take_the_smallest_type_that_holds_them(tmp_path: Path, vocab_size: int, dtype: type) -> None:
    store = write_store(tmp_path, [[[0, vocab_size - 1]]], vocab_size)
    assert store[0].dtype == dtype
    assert store[0].tolist() == [0, vocab_size - 1]
    assert (tmp_path / "00000.bin").stat().st_size == 2 * np.dtype(dtype).itemsize


def test_an_id_too_large_for_the_type_is_not_wrapped_around(tmp_path: Path) -> None:
    with pytest.raises(OverflowError):
        write_shard(tmp_path, 0, [[65_536]], "uint16")


@pytest.mark.parametrize("index", [-1, 2])
def test_a_document_out_of_range_is_an_index_error(tmp_path: Path, index: int) -> None:
    with pytest.raises(IndexError):
        write_store(tmp_path, [[[1], []]], 100)[index]


def _truncate(folder: Path) -> None:
    with (folder / "00001.bin").open("r+b") as file:
        file.truncate(2)


def _odd_size(folder: Path) -> None:
    with (folder / "00001.bin").open("ab") as file:
        file.write(b"x")


def _other_counts(folder: Path) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, "documents": 99}))


DAMAGES = [
    _truncate,
    _odd_size,
    _other_counts,
    lambda folder: (folder / "meta.json").unlink(),
    lambda folder: (folder / "meta.json").write_text("{"),
    lambda folder: (folder / "meta.json").write_text('{"dtype": "uint16"}'),
    lambda folder: (folder / "00000.bin").unlink(),
    lambda folder: (folder / "00001.idx").unlink(),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_store_is_refused(tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    write_store(tmp_path, [[[1, 2], [3]], [[4, 5, 6]]], 100)
    damage(tmp_path)
    with pytest.raises(PipelineError, match="run the tokenize stage again"):
        TokenStore(tmp_path)
