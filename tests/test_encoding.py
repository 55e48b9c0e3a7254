"""Encoding piece by piece against the tokenizer on whole texts."""

import random
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import sentences, tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

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
_PIECES += ["\x0b", "\x85", "\u2003", "\u2028", "“", "«", "ở", "'ll", "'", "x1", "№", "ª", "²", "٣"]
texts = st.lists(st.lists(st.sampled_from(_PIECES), max_size=12).map("".join) | st.text(max_size=20), max_size=8)


def whole(made: Tokenizer, given_texts: list[str]) -> list[list[int]]:
    made.encode_special_tokens = True
    return [encoding.ids for encoding in made.encode_batch(given_texts, add_special_tokens=False)]


@given(texts)
@settings(max_examples=200)
def test_piece_by_piece_a_byte_level_tokenizer_gives_the_ids_of_whole_texts(given_texts: list[str]) -> None:
    encoder, expected = Encoder(tokenizer()), whole(tokenizer(), given_texts)
    for _ in range(2):  # of words that are new, and of words that it remembers
        ids, lengths = encoder.encode(given_texts)
        assert lengths == [len(row) for row in expected]
        assert ids.tolist() == [token for row in expected for token in row]


@cache
def _joins_much() -> str:
    """A byte-level tokenizer whose entries join white space, marks and digits wherever its rules let it."""
    made, chooser = Tokenizer(models.BPE()), random.Random(1)
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    trainer = trainers.BpeTrainer(
        vocab_size=2000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator(("".join(chooser.choices(_PIECES, k=40)) for _ in range(2000)), trainer)
    return str(made.to_str())


@given(texts)
@settings(max_examples=200)
def test_so_does_one_that_has_learned_to_join_white_space_and_marks(given_texts: list[str]) -> None:
    expected = whole(Tokenizer.from_str(_joins_much()), given_texts)
    ids, lengths = Encoder(Tokenizer.from_str(_joins_much())).encode(given_texts)
    assert lengths == [len(row) for row in expected]
    assert ids.tolist() == [token for row in expected for token in row]


def test_lines_that_hold_a_space_alone_stay_one_token() -> None:
    made = learn("byte_bpe", lambda: iter([["a \n \n b c \n \n d"] * 50]), 400)
    ids, _ = Encoder(Tokenizer.from_str(made.to_str())).encode(["a \n \n b"])
    assert ids.tolist() == whole(made, ["a \n \n b"])[0]
    assert len(ids) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_tokenizer_gives_the_ids_of_whole_texts(kind: str) -> None:
    read = [list(sentences())]
    made = learn(kind, lambda: iter(read), 800)
    ids, lengths = Encoder(Tokenizer.from_str(made.to_str())).encode(sentences()[:200])
    expected = whole(made, list(sentences()[:200]))
    assert lengths == [len(row) for row in expected]
    assert ids.tolist() == [token for row in expected for token in row]


def test_what_it_remembers_is_bounded_and_forgetting_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "_REMEMBERED", 2000)
    monkeypatch.setattr(encoding, "_PART", 500)  # a call is of several parts, and what a part adds is little
    encoder, expected = Encoder(tokenizer()), whole(tokenizer(), list(sentences()))
    found, most = [], 0
    for n in range(0, len(sentences()), 7):
        found.append(encoder.encode(sentences()[n : n + 7])[0])
        most = max(most, encoder._pieces.nbytes + encoder._ids.nbytes)
    assert np.concatenate(found).tolist() == [token for row in expected for token in row]
    assert most < 20_000
    monkeypatch.setattr(encoding, "_REMEMBERED", 1 << 24)
    everything = Encoder(tokenizer())
    everything.encode(sentences())
    assert everything._pieces.nbytes + everything._ids.nbytes > most


def test_encoding_does_without_pandas(tmp_path: Path) -> None:
    """Arrow imports it, where it is there, to look at what it is given: 30 MB a process."""
    tokenizer().save(str(tmp_path / "tokenizer.json"))
    program = (
        "import sys\nfrom tokenizers import Tokenizer\nfrom stages.encoding import Encoder\n"
        "ids, lengths = Encoder(Tokenizer.from_file(sys.argv[1])).encode(['some words', '', 'words'])\n"
        "assert len(ids) == sum(lengths) > 0\nprint('pandas' in sys.modules)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "tokenizer.json")]
    told = subprocess.run(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True, check=True)
    assert told.stdout.strip() == "False"
