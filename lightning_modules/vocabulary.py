"""What a tokenizer's entries say about the text they stand for: tables over the vocabulary, indexed by token id.

For whole-word masking, sentence boundaries and embeddings made of characters. All of the pipeline's tokenizer kinds are
known by their model and decoder. Each table is made once, at about 2 µs an entry.
"""

import re

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from lightning_modules.errors import PipelineError

_SENTENCE_END = re.compile(r"""[.!?…。！？]["'”’»)\]}]*\Z""")


def special_count(tokenizer: Tokenizer) -> int:
    """How many ids at the start of the vocabulary are special tokens': text is written with the ids from there on."""
    special = _special(tokenizer)
    return next((number for number in range(len(special)) if number not in special), len(special))


def word_starts(tokenizer: Tokenizer) -> npt.NDArray[np.bool_]:
    """(V,): whether a token begins a word. Tokens up to the next start belong to it; a special token is its own start.

    Where white space is in the tokens (byte_bpe, bpe, unigram, character), a token that starts with white space begins
    a word: "." after a word is part of it, and a token that is nothing but a space or line feed begins the word whose
    letters follow. A text's first word begins with its first token, whatever the table says of it. Of word and
    wordpiece, whose tokens know no white space, each piece begins a word unless it continues one ("##"), so that
    punctuation stands apart.
    """
    special = _special(tokenizer)
    texts = [text.decode(errors="replace") for text in _texts(tokenizer)]
    return np.array([n in special or text[:1].isspace() for n, text in enumerate(texts)], np.bool_)


def sentence_ends(tokenizer: Tokenizer) -> npt.NDArray[np.bool_]:
    """(V,): whether a sentence ends after a token: its text ends in . ! ? …, or these and closing quotes; or `</s>`.

    A token is judged by itself: with characters as tokens the point of 3.14 ends a sentence too. Closing quotes that
    are tokens of their own belong to the next sentence.
    """
    special, eos = _special(tokenizer), tokenizer.token_to_id("</s>")
    texts = [text.decode(errors="replace") for text in _texts(tokenizer)]
    ends = [n == eos or (n not in special and _SENTENCE_END.search(text) is not None) for n, text in enumerate(texts)]
    return np.array(ends, np.bool_)


def token_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """V byte strings, none empty: a token's text in UTF-8 without the mark of a word's start; a special token's name.

    A token of white space alone keeps it. byte_bpe has tokens that are a part of a character: so are their bytes.
    """
    return [text if text.isspace() else text.removeprefix(b" ") for text in _texts(tokenizer)]


def _special(tokenizer: Tokenizer) -> set[int]:
    return set(tokenizer.get_added_tokens_decoder())


def _texts(tokenizer: Tokenizer) -> list[bytes]:
    """What each token adds to a text, after a space where it begins a word; for special tokens their names.

    Raises PipelineError for a tokenizer whose model and decoder are none of the pipeline's, or whose ids have gaps.
    """
    ids = tokenizer.get_vocab()
    if ids and max(ids.values()) + 1 != len(ids):
        raise PipelineError(
            f"the tokenizer's ids have gaps ({len(ids)} entries, ids up to {max(ids.values())}): whole words, sentence "
            "ends and spelling need a tokenizer without, as the tokenizer stage makes"
        )
    names = sorted(ids, key=lambda name: ids[name])
    special = _special(tokenizer)
    if isinstance(tokenizer.decoder, decoders.ByteLevel):
        byte_of = _bytes_of_letters()
        texts = [bytes(map(byte_of.__getitem__, name)) if n not in special else b"" for n, name in enumerate(names)]
    elif isinstance(tokenizer.decoder, decoders.Metaspace):
        texts = [name.replace("▁", " ").encode() for name in names]
    elif isinstance(tokenizer.decoder, decoders.Fuse):  # characters
        texts = [name.encode() for name in names]
    elif isinstance(tokenizer.model, models.WordPiece | models.WordLevel):
        prefix = tokenizer.model.continuing_subword_prefix if isinstance(tokenizer.model, models.WordPiece) else ""
        inside = [bool(prefix) and name.startswith(prefix) for name in names]
        texts = [(name[len(prefix) :] if i else f" {name}").encode() for name, i in zip(names, inside, strict=True)]
    else:
        raise PipelineError("this tokenizer is of no known kind: use one that the tokenizer stage made")
    return [names[n].encode() if n in special else text for n, text in enumerate(texts)]


def _bytes_of_letters() -> dict[str, int]:
    """Byte-level BPE writes bytes as letters: printable Latin-1 as itself, the others in order from U+0100."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    own = {letter: ord(letter) for letter in letters if ord(letter) < 256}
    others = sorted(set(range(256)) - set(own.values()))
    return own | dict(zip((letter for letter in letters if letter not in own), others, strict=True))
