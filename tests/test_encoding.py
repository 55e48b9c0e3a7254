"""Encoding word by word against the tokenizer on whole texts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import sentences, tokenizer
from tokenizers import Tokenizer

from stages import encoding
from stages.encoding import Encoder
from stages.tokenizer_kinds import KINDS, learn

# Letters, white space of all sorts, marks that join or separate, contractions, digits, special tokens, emoji, accents
# that stand apart from their letter.
_PIECES = [
    "a",
    "Über",
    "don't",
    "'s",
    " ",
    "  ",
    "\n",
    "\t",
    "\u00a0",
    "\u3000",
    "\r\n",
    ".",
    "…",
    "(",
    "12",
    "</s>",
    "<mask>",
]
_PIECES += ["e\u0301", "\u0301", "🙂", "👩‍🚀", "日本", "\u200b", "_", "\x1c"]
texts = st.lists(st.lists(st.sampled_from(_PIECES), max_size=12).map("".join) | st.text(max_size=20), max_size=8)


def whole(made: Tokenizer, given_texts: list[str]) -> list[list[int]]:
    made.encode_special_tokens = True
    return [encoding.ids for encoding in made.encode_batch(given_texts, add_special_tokens=False)]


@given(texts)
@settings(max_examples=300)
def test_word_by_word_a_byte_level_tokenizer_gives_the_ids_of_whole_texts(given_texts: list[str]) -> None:
    encoder, expected = Encoder(tokenizer()), whole(tokenizer(), given_texts)
    for _ in range(2):  # of words that are new, and of words that it remembers
        ids, lengths = encoder.encode(given_texts)
        assert lengths == [len(row) for row in expected]
        assert ids.tolist() == [token for row in expected for token in row]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_tokenizer_gives_the_ids_of_whole_texts(kind: str) -> None:
    read = [list(sentences())]
    made = learn(kind, lambda: iter(read), 800)
    ids, lengths = Encoder(Tokenizer.from_str(made.to_str())).encode(sentences()[:200])
    expected = whole(made, list(sentences()[:200]))
    assert lengths == [len(row) for row in expected]
    assert ids.tolist() == [token for row in expected for token in row]


def test_what_it_remembers_is_bounded_and_forgetting_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "_REMEMBERED", 50)
    encoder, expected = Encoder(tokenizer()), whole(tokenizer(), list(sentences()))
    found = [encoder.encode(sentences()[n : n + 7])[0] for n in range(0, len(sentences()), 7)]
    assert np.concatenate(found).tolist() == [token for row in expected for token in row]
    assert len(encoder._known) < 50 + 7 * 25
