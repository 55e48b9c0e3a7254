"""The kinds of tokenizer: how each cuts text into tokens, learns its entries, and puts a text together again.

Every kind normalises to NFC, has SPECIAL_TOKENS at ids 0…68, and gives the same bytes for the same text. All but
character hold the distinct words with their counts; bpe, wordpiece, unigram and character first count the characters in
a reading of their own. unigram is slow on big text, estimating every entry over all distinct words again and again:
on text with spaces it takes a few times bpe's processor time, on text without (Chinese, Japanese, Thai) some thirty.
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

SENTINELS = 64
SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>", "<mask>", *(f"<extra_id_{n}>" for n in range(SENTINELS)))
_UNKNOWN = "<unk>"
_MIN_FREQUENCY = 2  # what is seen once is no pattern

# Space and word, number or marks, never two of these together: no special token's name is ever one piece of text.
_SPACED = Regex(r"▁?[\p{L}\p{M}]+|▁?\p{N}+|▁?[^\p{L}\p{M}\p{N}▁\s]+|\s+|▁")
_WORD = Regex(r"[\p{L}\p{M}\p{N}_]+(?:['’][\p{L}\p{M}]+)*|\S")  # don't is one word

Read = Callable[[], Iterator[list[str]]]  # each call reads the training texts once, in batches


@dataclass(frozen=True)
class Kind:
    """A value of `tokenizer.kind`: what its entries stand for, and how (texts, vocab_size) become a tokenizer."""

    entries: str
    learn: Callable[[Read, int], Tokenizer]


def _byte_bpe(read: Read, vocab_size: int) -> Tokenizer:
    """Byte-pair encoding of UTF-8 bytes (Radford et al. 2019, section 2.2). A decoded text starts with a space."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return _trained(tokenizer, read(), trainers.BpeTrainer(initial_alphabet=alphabet, **_limits(vocab_size)))


def _bpe(read: Read, vocab_size: int) -> Tokenizer:
    """Byte-pair encoding of characters (Sennrich et al. 2016, arXiv:1508.07909, section 3.2)."""
    alphabet = _alphabet(read, (vocab_size - len(SPECIAL_TOKENS)) // 2)
    tokenizer = _spaced(models.BPE(unk_token=_UNKNOWN))
    return _trained(tokenizer, _limited_to(alphabet, read), trainers.BpeTrainer(**_limits(vocab_size)))


def _unigram(read: Read, vocab_size: int) -> Tokenizer:
    """The unigram language model (Kudo 2018, arXiv:1804.10959, section 3.2). Neighbouring unknowns are one <unk>."""
    alphabet = _alphabet(read, (vocab_size - len(SPECIAL_TOKENS)) // 2)
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size, special_tokens=list(SPECIAL_TOKENS), unk_token=_UNKNOWN, show_progress=False
    )
    tokenizer = _trained(_spaced(models.Unigram()), _limited_to(alphabet, read), trainer)
    tokenizer.model = _settled(json.loads(tokenizer.to_str())["model"]["vocab"])
    return tokenizer


def _settled(vocabulary: list[tuple[str, float]]) -> models.Unigram:
    """The same entries with scores and ids that do not depend on the order in which the trainer met the words.

    That order, a hash table's, differs from run to run. It leaves rounding errors in the scores (4e-11 at most where
    measured), and characters that lost their probability get the lowest score plus 0, 1, 2 … times 1e-4 by it. The
    entries themselves have been the same in every run measured, but no proof says that they must be.
    """
    first = len(SPECIAL_TOKENS)
    lowest = min((score for _, score in vocabulary[first:]), default=0.0)
    raised = lowest + 1e-4 * sum(len(piece) == 1 for piece, _ in vocabulary[first:])
    pieces = [
        (piece, round(lowest if len(piece) == 1 and score <= raised else score, 6))
        for piece, score in vocabulary[first:]
    ]
    pieces.sort(key=lambda entry: (-entry[1], entry[0]))
    specials = [(token, score) for token, score in vocabulary[:first]]
    return models.Unigram([*specials, *pieces], SPECIAL_TOKENS.index(_UNKNOWN), byte_fallback=False)


def _wordpiece(read: Read, vocab_size: int) -> Tokenizer:
    """WordPiece with BERT's words (Devlin et al. 2019, arXiv:1810.04805), case kept; a word not writable is one <unk>.

    The trainer numbers the characters that continue a word in a hash table's order, and ties between pairs are decided
    by these numbers. Declared as special they are numbered beforehand; the tokenizer made of the result knows better.
    """
    cut = pre_tokenizers.BertPreTokenizer()
    alphabet = _alphabet(read, (vocab_size - len(SPECIAL_TOKENS)) // 4)
    continuing = [
        f"##{c}" for c in sorted(alphabet) if [piece for piece, _ in cut.pre_tokenize_str(f"a{c}")] == [f"a{c}"]
    ]
    limits = _limits(vocab_size) | {"special_tokens": [*SPECIAL_TOKENS, *continuing]}
    learner = _separate(models.WordPiece(unk_token=_UNKNOWN), cut)
    learner = _trained(learner, _limited_to(alphabet, read), trainers.WordPieceTrainer(**limits))
    return _separate(learner.model, cut)


def _word(read: Read, vocab_size: int) -> Tokenizer:
    """The most frequent words, and punctuation marks one by one."""
    cut = pre_tokenizers.Split(_WORD, "removed", invert=True)
    tokenizer = _separate(models.WordLevel(unk_token=_UNKNOWN), cut)
    return _trained(tokenizer, read(), trainers.WordLevelTrainer(**_limits(vocab_size)))


def _character(read: Read, vocab_size: int) -> Tokenizer:
    """The most frequent characters, space and line feed among them. A text comes back exactly."""
    entries = [*SPECIAL_TOKENS, *_alphabet(read, vocab_size - len(SPECIAL_TOKENS))]
    tokenizer = Tokenizer(models.WordLevel({entry: n for n, entry in enumerate(entries)}, unk_token=_UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.FixedLength(length=1)
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


KINDS = {
    "byte_bpe": Kind("patterns", _byte_bpe),
    "bpe": Kind("patterns", _bpe),
    "unigram": Kind("patterns", _unigram),
    "wordpiece": Kind("patterns", _wordpiece),
    "word": Kind("words seen more than once", _word),
    "character": Kind("characters seen more than once", _character),
}


def learn(kind: str, read: Read, vocab_size: int) -> Tokenizer:
    """A tokenizer of at most `vocab_size` entries for a key of KINDS, its special tokens declared."""
    tokenizer = KINDS[kind].learn(read, vocab_size)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def _limits(vocab_size: int) -> dict[str, Any]:
    return {
        "vocab_size": vocab_size,
        "min_frequency": _MIN_FREQUENCY,
        "special_tokens": list(SPECIAL_TOKENS),
        "show_progress": False,
    }


def _trained(tokenizer: Tokenizer, texts: Iterator[list[str]], trainer: trainers.Trainer) -> Tokenizer:
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _spaced(model: models.Model) -> Tokenizer:
    """Tokens carry the space before them, as ▁. A text comes back exactly, less one space at its start; ▁ as space."""
    tokenizer = Tokenizer(model)
    marked = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([marked, pre_tokenizers.Split(_SPACED, "isolated")])
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    return tokenizer


def _separate(model: models.Model, cut: pre_tokenizers.PreTokenizer) -> Tokenizer:
    """Tokens say nothing of white space: a text comes back with one space between words and marks.

    None stands before marks that close (. , ) …) or after those that open; quotes and hyphens keep both of theirs.
    """
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = cut
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.WordPiece(prefix="##", cleanup=False),
            decoders.Fuse(),
            decoders.Replace(Regex(r" (?=[.,;:!?%)\]}”’»…])"), ""),
            decoders.Replace(Regex(r"(?<=[(\[{“‘«]) "), ""),
        ]
    )
    return tokenizer


def _alphabet(read: Read, limit: int) -> list[str]:
    """The `limit` most frequent characters of the texts in NFC, the most frequent first, equals by code point."""
    counts: Counter[str] = Counter()
    for batch in read():
        for text in batch:
            counts.update(unicodedata.normalize("NFC", text))
    frequent = [c for c, count in counts.items() if count >= _MIN_FREQUENCY]
    return sorted(frequent, key=lambda c: (-counts[c], c))[:limit]


def _limited_to(alphabet: list[str], read: Read) -> Iterator[list[str]]:
    """The texts in NFC with a space for every other character, so that none of these gets an entry."""
    others = re.compile(f"[^ {re.escape(''.join(alphabet))}]")
    for batch in read():
        yield [others.sub(" ", unicodedata.normalize("NFC", text)) for text in batch]
