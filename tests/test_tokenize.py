"""Tokenizing: stores that hold each record's ids in order, the same whatever the workers and the shards."""

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from lightning_modules.errors import PipelineError
from lightning_modules.token_store import TokenStore
from stages.splits import SPLITS
from stages.tasks import TASKS
from stages.tokenize import tokenize
from stages.tokenizer import train_tokenizer

TEXTS = [f"service number {n} returns </s> a <extra_id_0> list of Geräte {'x' * (n % 5)}" for n in range(230)]


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """Pre-training texts in row groups of 50 with an empty test split, and two tasks."""
    folder = tmp_path / "prepared"
    for purpose, fields in {"pretraining": ("text",), **{name: TASKS[name].fields for name in TASKS}}.items():
        for split in SPLITS:
            texts = [] if (purpose, split) == ("pretraining", "test") else TEXTS[: 230 if split == "train" else 20]
            columns = {field: pa.array([f"{field} {text}" for text in texts], pa.string()) for field in fields}
            (folder / purpose).mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.table(columns), folder / purpose / f"{split}.parquet", row_group_size=50)
    return folder


@pytest.fixture
def tokenizer(prepared: Path, tmp_path: Path) -> Path:
    path = tmp_path / "tokenizer.json"
    train_tokenizer(prepared / "pretraining" / "train.parquet", 512).save(str(path))
    return path


def documents(store: TokenStore) -> list[list[int]]:
    return [store[number].tolist() for number in range(len(store))]


def plain_encoding(tokenizer: Path, texts: list[str]) -> list[list[int]]:
    reference = Tokenizer.from_file(str(tokenizer))
    reference.encode_special_tokens = True
    return [reference.encode(text, add_special_tokens=False).ids for text in texts]


def test_each_store_holds_its_texts_in_order(prepared: Path, tokenizer: Path, tmp_path: Path) -> None:
    totals = tokenize(prepared, tokenizer, tmp_path / "tokens", workers=1)
    store = TokenStore(tmp_path / "tokens/pretraining/train")
    texts = [f"text {text}" for text in TEXTS]
    assert documents(store) == plain_encoding(tokenizer, texts)
    assert store.meta.utf8_bytes == sum(len(text.encode()) for text in texts)
    assert store.meta.tokenizer_sha256 == hashlib.sha256(tokenizer.read_bytes()).hexdigest()
    assert totals["pretraining/train"] == store.meta.tokens
    for task, definition in TASKS.items():
        rows = pq.read_table(prepared / task / "validation.parquet").to_pylist()
        for side, text_of in (("source", definition.source_text), ("target", definition.target_text)):
            side_store = TokenStore(tmp_path / "tokens" / task / "validation" / side)
            assert documents(side_store) == plain_encoding(tokenizer, [text_of(row) for row in rows])
    assert len(TokenStore(tmp_path / "tokens/pretraining/test")) == 0


def test_words_that_look_like_special_tokens_are_words(prepared: Path, tokenizer: Path, tmp_path: Path) -> None:
    tokenize(prepared, tokenizer, tmp_path / "tokens", workers=1)
    store = TokenStore(tmp_path / "tokens/pretraining/train")
    assert min(min(ids) for ids in documents(store)) >= 69


def test_the_same_bytes_whatever_the_workers(prepared: Path, tokenizer: Path, tmp_path: Path) -> None:
    outcomes = []
    for workers in (1, 2):
        tokenize(prepared, tokenizer, tmp_path / "tokens", workers)
        files = [path for path in sorted((tmp_path / "tokens").rglob("*")) if path.is_file()]
        outcomes.append([(path.relative_to(tmp_path), path.read_bytes()) for path in files])
    assert outcomes[0] == outcomes[1]


def test_shards_of_a_fixed_number_of_documents(
    prepared: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenize(prepared, tokenizer, tmp_path / "one", workers=1)
    monkeypatch.setattr("stages.tokenize.SHARD_DOCUMENTS", 60)
    tokenize(prepared, tokenizer, tmp_path / "many", workers=1)
    one, many = (TokenStore(tmp_path / name / "pretraining/train") for name in ("one", "many"))
    assert (one.meta.shards, many.meta.shards) == (1, 4)
    assert documents(one) == documents(many)


def test_what_is_missing_is_named_and_nothing_written(prepared: Path, tokenizer: Path, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="run the tokenizer stage first"):
        tokenize(prepared, tmp_path / "none.json", tmp_path / "tokens", workers=1)
    with pytest.raises(PipelineError, match="run the prepare stage first"):
        tokenize(tmp_path / "none", tokenizer, tmp_path / "tokens", workers=1)
    (prepared / "translation" / "test.parquet").write_bytes(b"damaged")
    with pytest.raises(PipelineError, match=r"translation/test\.parquet cannot be read"):
        tokenize(prepared, tokenizer, tmp_path / "tokens", workers=1)
    assert not (tmp_path / "tokens").exists()
