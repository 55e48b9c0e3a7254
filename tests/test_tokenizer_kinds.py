"""Every kind of tokenizer: special tokens in their place, the size held, texts that come back, always the same."""

import unicodedata
from collections import Counter
from functools import cache
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from stages.tokenizer_kinds import KINDS, SPECIAL_TOKENS, learn
from tests.tiny import sentences

EXACT = ("bpe", "unigram", "character")  # and byte_bpe, of which tests/test_tokenizer.py tells
KNOWN = [c for c, n in Counter("".join(sentences())).items() if n > 1]
SPECIAL_AS_TEXT = "a </s> b<unk><mask> <extra_id_3>, <s>x</s>"


@cache
def tokenizer(kind: str) -> Tokenizer:
    texts = [*sentences(), *[SPECIAL_AS_TEXT] * 50]
    made = learn(kind, lambda: iter([texts[:100], texts[100:]]), 700)
    made.encode_special_tokens = True
    return made


def ids_of(kind: str, text: str) -> list[int]:
    return tokenizer(kind).encode(text, add_special_tokens=False).ids


def back(kind: str, ids: list[int]) -> str:
    return tokenizer(kind).decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_come_first_and_are_known_as_special(kind: str) -> None:
    assert [tokenizer(kind).token_to_id(token) for token in SPECIAL_TOKENS] == list(range(69))
    added = tokenizer(kind).get_added_tokens_decoder()
    assert [(n, added[n].content, added[n].special) for n in sorted(added)] == [
        (n, token, True) for n, token in enumerate(SPECIAL_TOKENS)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_names_of_special_tokens_are_letters_in_a_text_and_tokens_where_asked_for(kind: str) -> None:
    assert min(ids_of(kind, SPECIAL_AS_TEXT)) >= len(SPECIAL_TOKENS)
    asking = Tokenizer.from_str(tokenizer(kind).to_str())
    assert [n for n in asking.encode(SPECIAL_AS_TEXT).ids if n < 69] == [2, 3, 4, 8, 1, 2]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_text_gives_the_same_bytes(kind: str) -> None:
    texts = list(sentences())
    made = [learn(kind, lambda: iter([texts]), size).to_str() for size in (512, 512, 512, 1200, 1200)]
    assert made[0] == made[1] == made[2] != ""
    assert made[3] == made[4]


@pytest.mark.parametrize("kind", KINDS)
def test_the_size_holds_whatever_the_alphabet(kind: str) -> None:
    many = ["".join(chr(0x4E00 + (n * 7 + k) % 3000) for k in range(40)) for n in range(900)]
    words = [f"{a}{b} " * 2 for a in many[0] for b in many[0]]
    made = learn(kind, lambda: iter([many, words]), 512)
    assert len(SPECIAL_TOKENS) < made.get_vocab_size() <= 512
    assert sorted(made.get_vocab().values()) == list(range(made.get_vocab_size()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("texts", [["hello hello"], ["", " "], ["\n \n"], ["abcdefg"], ["aa"]])
def test_next_to_no_text_is_enough(kind: str, texts: list[str]) -> None:
    made = learn(kind, lambda: iter([texts]), 512)
    assert made.get_vocab_size() < 512
    assert made.encode("hello, all").ids


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_writes_known_text_without_unknown_tokens(kind: str) -> None:
    common = " ".join(word for word, n in Counter(" ".join(sentences()).split()).most_common(60) if word.isalpha())
    assert 3 not in ids_of(kind, common)
    assert back(kind, ids_of(kind, common)).strip() == common


@pytest.mark.parametrize("kind", EXACT)
@given(text=st.text(st.sampled_from([*KNOWN, " ", "▁", "\u0301"])))
def test_texts_of_known_characters_come_back(kind: str, text: str) -> None:
    normal = unicodedata.normalize("NFC", text)
    expected = normal
    if kind != "character":
        expected = normal.replace("▁", " ").removeprefix(" ")
    ids = ids_of(kind, text)
    known = [n for n in ids if n != 3]
    assert (3 in ids) == (not set(normal) <= {*KNOWN, " ", *("▁" if kind != "character" else "")})
    if known == ids:
        assert back(kind, ids) == expected


@pytest.mark.parametrize(
    ("kind", "unknown"), [("byte_bpe", 0), ("bpe", 2), ("unigram", 1), ("wordpiece", 1), ("word", 1), ("character", 2)]
)
def test_what_is_not_in_the_vocabulary_is_unknown(kind: str, unknown: int) -> None:
    assert ids_of(kind, "the 囲囲 of").count(3) == unknown


@pytest.mark.parametrize("kind", ["wordpiece", "word"])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the value of this, or a name.", None),
        ("If the (value) is a string:\nthe name!", "If the (value) is a string: the name!"),
        ('a  "name"', 'a " name "'),
        ("a - b", None),
    ],
)
def test_words_come_back_with_single_spaces_around(kind: str, text: str, expected: str | None) -> None:
    assert back(kind, ids_of(kind, text)) == (expected or text)


def test_wordpieces_continue_with_two_hashes_and_keep_case() -> None:
    made, long = tokenizer("wordpiece"), ids_of("wordpiece", "Theoretically")
    pieces = [made.id_to_token(n) or "" for n in long]
    assert "".join(piece.removeprefix("##") for piece in pieces) == "Theoretically"
    assert [piece.startswith("##") for piece in pieces] == [False] + [True] * (len(pieces) - 1)
    assert len(pieces) > 1


def test_words_are_the_most_frequent_and_contractions_are_whole() -> None:
    texts = ["don't do it, (it's) l’été"] * 3 + ["do do do once"]
    made = learn("word", lambda: iter([texts]), 512)
    learned = sorted(made.get_vocab().items(), key=lambda entry: entry[1])[len(SPECIAL_TOKENS) :]
    assert [word for word, _ in learned] == ["do", "(", ")", ",", "don't", "it", "it's", "l’été"]
    counted = Counter(word for text in sentences() for word in text.split() if word.isalpha())
    vocabulary = tokenizer("word").get_vocab()
    assert all(word in vocabulary for word, _ in counted.most_common(100))


def test_characters_are_the_most_frequent_in_order() -> None:
    texts = ["cccc bbbb", "aae\u0301é\n\nx"]
    made = learn("character", lambda: iter([texts]), 512)
    assert list(map(made.id_to_token, range(69, made.get_vocab_size()))) == ["b", "c", "\n", "a", "é"]
    assert learn("character", lambda: iter([texts]), 69 + 2).get_vocab_size() == 69 + 2


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_no_piece_is_of_letters_and_marks(kind: str) -> None:
    pieces = {piece.removeprefix("▁") for piece in tokenizer(kind).get_vocab()} - set(SPECIAL_TOKENS)
    assert max(map(len, pieces)) > 3
    assert [piece for piece in pieces if any(a.isalpha() != b.isalpha() for a, b in pairwise(piece))] == []
