"""Tokenizing: stores that hold each record's ids in order, the same whatever the workers and the shards."""

import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from lightning_modules.errors import PipelineError
from lightning_modules.token_store import TokenStore
from stages.splits import SPLITS
from stages.tasks import TASKS
from stages.tokenize import place, tokenize
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


def write_split(prepared: Path, task: str, split: str, rows: list[dict[str, str]]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), prepared / task / f"{split}.parquet", row_group_size=7)


def test_a_place_is_that_of_the_answers_characters(prepared: Path, tokenizer: Path, tmp_path: Path) -> None:
    rows = []
    for number, text in enumerate(TEXTS[:40]):
        answer = ["number", f"{number}", "Geräte", "", "nowhere", "a"][number % 6]
        start = str(text.find(answer)) if number % 2 and answer in text else ""
        row = {"question": f"what, {number}?", "context": text, "answer": answer, "answer_start": start}
        rows.append(row)
    write_split(prepared, "question_answering", "train", rows)
    tokenize(prepared, tokenizer, tmp_path / "tokens", workers=2)
    folder, reference = tmp_path / "tokens/question_answering/train", Tokenizer.from_file(str(tokenizer))
    sources, places = documents(TokenStore(folder / "source")), documents(TokenStore(folder / "place"))
    for row, source, found in zip(rows, sources, places, strict=True):
        if row["answer"] == "nowhere":
            assert found == []
            continue
        assert reference.decode(source[: found[0]]).strip() == f"question: {row['question']} context:"
        if row["answer"]:
            context, first, last = found
            assert row["answer"] in reference.decode(source[first : last + 1])
            assert row["answer"] not in reference.decode(source[first + 1 : last + 1])
            before = reference.decode(source[context:first]).strip()
            assert row["context"].startswith(before)
            assert len(before) <= row["context"].index(row["answer"])
        else:
            assert len(found) == 1


def test_of_several_places_the_one_said_counts_else_the_first_that_is_a_word() -> None:
    source = "question: q context: cat at a mat"
    offsets = [(n, n + 1) for n in range(len(source))]
    context = source.index("cat")
    assert place(source, "at", "", offsets) == [context, context + 4, context + 5]
    assert place(source, "at", "10", offsets) == [context, context + 10, context + 11]
    assert place(source, "at", "2", offsets) == [context, context + 4, context + 5]  # it does not stand there
    assert place(source, "ma", "", offsets) == [context, context + 9, context + 10]
    assert place(source, "question", "", offsets) == []
    assert place(source, "", "", offsets) == [context]

    source = "question: q context: की कि क है"  # a letter with a vowel sign is another word than the letter
    offsets, context = [(n, n + 1) for n in range(len(source))], source.index("की")
    assert place(source, "क", "", offsets) == [context, context + 6, context + 6]
    assert place(source, "कि", "", offsets) == [context, context + 3, context + 4]
    assert place(source, "ी", "", offsets) == [context, context + 1, context + 1]


def test_classes_are_numbered_and_unknown_ones_told(
    prepared: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = ["rain", "Sun", "ä, b", "rain"]
    train = [{"text": text, "label": labels[number % 4]} for number, text in enumerate(TEXTS[:30])]
    write_split(prepared, "classification", "train", train)
    test = [{"text": "a", "label": "rain"}, {"text": "b", "label": "hail"}, {"text": "c", "label": "ä, b"}]
    write_split(prepared, "classification", "test", test)
    write_split(prepared, "classification", "validation", train[:9])
    tokenize(prepared, tokenizer, tmp_path / "tokens", workers=2)
    folder = tmp_path / "tokens/classification"
    names = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
    assert names == ["Sun", "rain", "ä, b"]
    assert [[names[n] for n in row] for row in documents(TokenStore(folder / "train/class"))] == [
        [row["label"]] for row in train
    ]
    assert documents(TokenStore(folder / "test/class")) == [[1], [], [2]]
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("classification")]
    assert len(told) == 1
    assert "1 of 3 records of test" in told[0]


def test_words_that_look_like_special_tokens_are_words(prepared: Path, tokenizer: Path, tmp_path: Path) -> None:
    tokenize(prepared, tokenizer, tmp_path / "tokens", workers=1)
    store = TokenStore(tmp_path / "tokens/pretraining/train")
    assert min(min(ids) for ids in documents(store)) >= 69


def test_the_same_bytes_whatever_the_workers(
    prepared: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.tokenize.WORTH", 1)  # so that little text has workers, too
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
