"""How well a tokenizer covers texts: tokens a word, words in pieces, unknown tokens, words never seen in training.

A word is an unbroken run of letters, the marks on them (vowel signs, accents), digits and underscores: where a script
puts no spaces, whole phrases are one, and the numbers compare texts of that script alone. Costs about a second
for a million words.
"""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from stages.bootstrap import scored
from stages.drift_known import whole_words
from stages.encoding import Encoder

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_WORDS, _TOKENS, _CONTINUED, _UNKNOWN, _UNSEEN = range(5)  # columns of the counts
# Name → what is divided by what. Fertility and continued words: Rust et al. 2021, arXiv:2012.15613.
MEASURES = {
    "fertility": (_TOKENS, _WORDS),
    "continued_words": (_CONTINUED, _WORDS),
    "unknown_tokens": (_UNKNOWN, _TOKENS),
    "oov_words": (_UNSEEN, _WORDS),
}


def coverage(
    texts: Sequence[str], tokenizer: "Tokenizer", seen: Collection[str], samples: int, seed: int
) -> dict[str, Any]:
    """{"words": their number, and for each of MEASURES {"score", "low", "high"}}, the interval over texts.

    `oov_words` is left out where nothing is known of the training (`seen` is empty); all are where there is no word.
    """
    counts_N5 = word_counts(texts, tokenizer, seen)
    words = int(counts_N5[:, _WORDS].sum()) if len(counts_N5) else 0
    found: dict[str, Any] = {"words": words}
    for name, (part, whole) in MEASURES.items():
        if words and (seen or name != "oov_words"):

            def share(total_K: npt.NDArray[np.float64], part: int = part, whole: int = whole) -> float:
                return float(total_K[part] / max(total_K[whole], 1.0))

            found[name] = scored(share, counts_N5, samples, seed)
    return found


def word_counts(texts: Sequence[str], tokenizer: "Tokenizer", seen: Collection[str]) -> npt.NDArray[np.float64]:
    """(N, 5) of each text: words, their tokens, words of several tokens, unknown tokens, words not in `seen`.

    Each distinct word is encoded once, by itself, as it stands after a space.
    """
    words_of = [whole_words(text) for text in texts]
    distinct = sorted({word for words in words_of for word in words})
    ids, lengths = Encoder(tokenizer).encode(distinct)
    ends = np.cumsum([0, *lengths])
    unknown = np.cumsum([0, *(ids == tokenizer.token_to_id("<unk>"))])
    facts_V5 = np.array(
        [
            (1, length, length > 1, unknown[ends[n + 1]] - unknown[ends[n]], word not in seen)
            for n, (word, length) in enumerate(zip(distinct, lengths, strict=True))
        ],
        np.float64,
    ).reshape(-1, 5)
    number = {word: n for n, word in enumerate(distinct)}
    return np.array([facts_V5[[number[word] for word in words]].sum(0) for words in words_of]).reshape(-1, 5)
