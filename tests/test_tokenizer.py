"""The tokenizer: ids where the contract has them, every text writable, the same bytes from the same text."""

import unicodedata
from pathlib import Path
from typing import get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from lightning_modules.errors import PipelineError
from stages.params_schema import Tokenizer as TokenizerParams
from stages.tokenizer import measure, train_tokenizer
from stages.tokenizer_kinds import KINDS, SPECIAL_TOKENS

WORDS = ["the", "service", "describes", "network", "über", "Geräte", "list", "of", "returns", "identifier"]
TEXTS = [" ".join(WORDS[(n * k) % 10] + WORDS[n % 9] + WORDS[k % 7] for k in range(1, 12)) for n in range(400)]


def parquet(path: Path, texts: list[str]) -> Path:
    pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), path, row_group_size=64)
    return path


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return train_tokenizer(parquet(tmp_path_factory.mktemp("texts") / "a.parquet", TEXTS), 512)


def test_ids_of_special_tokens_bytes_and_size(tokenizer: Tokenizer) -> None:
    assert SPECIAL_TOKENS[:6] == ("<pad>", "<s>", "</s>", "<unk>", "<mask>", "<extra_id_0>")
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == list(range(69))
    assert tokenizer.token_to_id("<extra_id_63>") == 68
    assert all(len(tokenizer.id_to_token(number) or "") == 1 for number in range(69, 69 + 256))
    assert len(tokenizer.id_to_token(69 + 256) or "") == 2
    assert tokenizer.get_vocab_size() == 512


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_every_text_comes_back_and_none_is_unknown(tokenizer: Tokenizer, text: str) -> None:
    tokenizer.encode_special_tokens = True
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert all(number >= 69 for number in ids)
    decoded = tokenizer.decode(ids, skip_special_tokens=False)
    normal = unicodedata.normalize("NFC", text)
    assert decoded == (normal if not normal or normal.startswith(" ") else f" {normal}")


def test_the_same_text_gives_the_same_bytes(tmp_path: Path, tokenizer: Tokenizer) -> None:
    again = train_tokenizer(parquet(tmp_path / "b.parquet", TEXTS), 512)
    assert again.to_str() == tokenizer.to_str()


def test_compression_counts_characters_not_bytes(tmp_path: Path, tokenizer: Tokenizer) -> None:
    texts = ["Geräte über Geräte"]
    tokens = len(tokenizer.encode(texts[0], add_special_tokens=False).ids)
    fit = measure(tokenizer, parquet(tmp_path / "c.parquet", texts))
    assert (fit.characters_per_token, fit.unknown_share) == (len(texts[0]) / tokens, 0)


def test_unknown_tokens_are_counted_and_their_name_is_text(tmp_path: Path) -> None:
    words = train_tokenizer(parquet(tmp_path / "f.parquet", ["a b < unk >"] * 2), 512, "word")
    assert measure(words, parquet(tmp_path / "g.parquet", ["a b c a", "<unk> q"])).unknown_share == 2 / 8
    assert measure(words, parquet(tmp_path / "h.parquet", [])).unknown_share == 0


def test_params_allow_the_kinds_that_there_are(tmp_path: Path) -> None:
    assert get_args(TokenizerParams.model_fields["kind"].annotation) == tuple(KINDS)
    texts = parquet(tmp_path / "i.parquet", TEXTS)
    assert len({train_tokenizer(texts, 512, kind).to_str() for kind in KINDS}) == len(KINDS)
    assert train_tokenizer(texts, 512).to_str() == train_tokenizer(texts, 512, "byte_bpe").to_str()


def test_a_small_text_gives_fewer_entries(tmp_path: Path) -> None:
    assert 69 + 256 < train_tokenizer(parquet(tmp_path / "d.parquet", ["hello hello"]), 512).get_vocab_size() < 512


def test_no_text_and_no_file(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="has no text to learn from"):
        train_tokenizer(parquet(tmp_path / "e.parquet", []), 512)
    with pytest.raises(PipelineError, match="run the prepare stage first"):
        train_tokenizer(tmp_path / "none.parquet", 512)


def test_a_damaged_file_is_one_line(tmp_path: Path, tokenizer: Tokenizer) -> None:
    texts = parquet(tmp_path / "j.parquet", TEXTS)
    texts.write_bytes(texts.read_bytes()[:-9])
    for read in (lambda: train_tokenizer(texts, 512), lambda: measure(tokenizer, texts)):
        with pytest.raises(PipelineError, match=r"j.parquet cannot be read .*: run the prepare stage first"):
            read()
