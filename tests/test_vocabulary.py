"""What is said of a vocabulary's entries, against the words, sentence ends and bytes of real text."""

from collections.abc import Callable
from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
from tokenizers import Tokenizer, models

from lightning_modules.errors import PipelineError
from lightning_modules.vocabulary import sentence_ends, special_count, token_bytes, word_starts
from stages.tokenizer_kinds import KINDS, SPECIAL_TOKENS, learn
from tests.tiny import sentences

SPACED = ("byte_bpe", "bpe", "unigram", "character")
TEXTS = (*sentences()[:200], "One line.\nAnother (short) line.\n\nEnd", "Grüße  aus “Köln”…")


@cache
def tokenizer(kind: str) -> Tokenizer:
    made = learn(kind, lambda: iter([[*sentences(), *TEXTS, *TEXTS]]), 900)
    made.encode_special_tokens = True
    return made


@cache
def starts(kind: str) -> npt.NDArray[np.bool_]:
    return word_starts(tokenizer(kind))


@cache
def table(kind: str) -> list[bytes]:
    return token_bytes(tokenizer(kind))


def words(kind: str, text: str) -> list[list[int]]:
    """A text's tokens, grouped by where words start."""
    ids = tokenizer(kind).encode(text).ids
    first = np.flatnonzero(starts(kind)[ids])
    return [part.tolist() for part in np.split(np.array(ids), first) if len(part)]


def written(kind: str, ids: list[int]) -> str:
    return b"".join(table(kind)[number] for number in ids).decode()


@pytest.mark.parametrize("kind", KINDS)
def test_every_table_has_a_place_for_every_token(kind: str) -> None:
    size = tokenizer(kind).get_vocab_size()
    assert starts(kind).shape == sentence_ends(tokenizer(kind)).shape == (size,)
    assert starts(kind).dtype == sentence_ends(tokenizer(kind)).dtype == np.bool_
    assert len(table(kind)) == size
    assert b"" not in table(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_are_counted_start_words_and_keep_their_names(kind: str) -> None:
    assert special_count(tokenizer(kind)) == len(SPECIAL_TOKENS)
    assert starts(kind)[: len(SPECIAL_TOKENS)].all()
    assert table(kind)[: len(SPECIAL_TOKENS)] == [token.encode() for token in SPECIAL_TOKENS]
    assert np.flatnonzero(sentence_ends(tokenizer(kind))[: len(SPECIAL_TOKENS)]).tolist() == [2]


@pytest.mark.parametrize("kind", SPACED)
def test_starts_cut_a_text_into_its_words(kind: str) -> None:
    seen = 0
    for text in TEXTS:
        ids = tokenizer(kind).encode(text).ids
        if 3 not in ids:
            groups = [written(kind, group).strip() for group in words(kind, text)]
            assert [group for group in groups if group] == text.split()
            seen += 1
    assert seen > 100


@pytest.mark.parametrize("kind", ["wordpiece", "word"])
def test_starts_cut_a_text_into_words_and_marks(kind: str) -> None:
    seen = 0
    for text in TEXTS:
        groups = words(kind, text)
        if any(3 in group for group in groups):
            continue
        texts = [written(kind, group) for group in groups]
        whole = iter(texts)
        for word in text.split():
            parts = ""
            while len(parts) < len(word):
                part = next(whole)
                assert part.isalnum() or len(part) == 1 or kind == "word"
                parts += part
            assert parts == word
        assert next(whole, None) is None
        seen += 1
    assert seen > 20


@pytest.mark.parametrize("kind", KINDS)
def test_a_word_is_written_alike_at_its_start_and_within(kind: str) -> None:
    assert written(kind, tokenizer(kind).encode("the").ids) == "the"
    names = {name: number for name, number in tokenizer(kind).get_vocab().items() if number >= len(SPECIAL_TOKENS)}
    for name, number in names.items():
        if name.removeprefix("##").isascii() and name.removeprefix("##").isalnum():
            assert table(kind)[number] == name.removeprefix("##").encode()


def test_byte_tokens_are_the_bytes_that_the_decoder_makes_of_them() -> None:
    bytes_of, made = table("byte_bpe"), tokenizer("byte_bpe")
    assert sorted(bytes_of[69 : 69 + 256]) == [bytes([n]) for n in range(256)]
    for number in range(69, made.get_vocab_size()):
        text = made.decode([number])
        if "\ufffd" not in text:
            assert bytes_of[number] == (text.encode() if text.isspace() else text.removeprefix(" ").encode())


@pytest.mark.parametrize("kind", KINDS)
def test_sentences_end_where_they_end(kind: str) -> None:
    ends = sentence_ends(tokenizer(kind))
    ids = tokenizer(kind).encode("the value is of a name. a list of it! the list? the name of (the value.)").ids
    assert 3 not in ids
    sentences_of: list[str] = [""]
    for number in ids:
        sentences_of[-1] += written(kind, [number])
        if ends[number]:
            sentences_of.append("")
    letters = [sentence.replace(" ", "").strip(")") for sentence in sentences_of]
    assert letters == ["thevalueisofaname.", "alistofit!", "thelist?", "thenameof(thevalue.", ""]


@pytest.mark.parametrize(
    ("piece", "end"), [("a.", True), ('!"', True), ("?’)", True), (".5", False), ("!=", False), (")", False)]
)
def test_closing_quotes_may_follow_the_end_of_a_sentence(piece: str, end: bool) -> None:
    made = Tokenizer(models.WordLevel({"<unk>": 0, piece: 1}, unk_token="<unk>"))
    assert sentence_ends(made)[1] == end


def test_a_tokenizer_of_another_make_is_refused() -> None:
    with pytest.raises(PipelineError, match="of no known kind"):
        word_starts(Tokenizer(models.BPE({"a": 0}, [])))


@pytest.mark.parametrize("table", [word_starts, sentence_ends, token_bytes])
def test_ids_with_gaps_are_refused(table: Callable[[Tokenizer], object]) -> None:
    with pytest.raises(PipelineError, match=r"ids have gaps \(3 entries, ids up to 7\)"):
        table(Tokenizer(models.WordLevel({"<unk>": 0, "rain": 2, "snow.": 7}, unk_token="<unk>")))
