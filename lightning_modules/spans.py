"""Random choices along rows of tokens, for a whole batch at once: cuts, spans, words, the order of sentences.

Each costs a few passes over arrays of the batch's size and at most two sorts of each row. How much is drawn from the
generator depends on the batch's shape alone, so a row comes out the same whatever its neighbours hold.
"""

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
Truth = npt.NDArray[np.bool_]


def hidden_tokens(length: int, rate: float) -> int:
    """How many of `length` tokens to hide: at least one; one is left to see where there are two or more."""
    return min(max(round(length * rate), 1), max(length - 1, 1))


def random_parts(rng: np.random.Generator, rows: int, total: int, parts: int) -> Ids:
    """(rows, parts): in each row `total` cut into `parts` positive integers, every such cut equally likely.

    Nothing (`total` 0) is one part of length 0.
    """
    keys = rng.random((rows, max(total - 1, 0)))  # the cuts are where the smallest keys are
    cuts = np.argpartition(keys, parts - 1, axis=1)[:, : parts - 1] if parts < total else np.argsort(keys, axis=1)
    cuts = np.sort(cuts, axis=1)
    edges = np.concatenate([np.zeros((rows, 1), np.int64), cuts + 1, np.full((rows, 1), total)], axis=1)
    return np.diff(edges, axis=1)


def poisson_spans(rng: np.random.Generator, rows: int, hidden: int, mean: float) -> tuple[Ids, Ids]:
    """Lengths of spans, drawn from Poisson(mean) until they hide `hidden` tokens; the draw that gets there is cut.

    Returns lengths (rows, hidden), those above 0 first, and the number of spans (rows, 1), at most `hidden`: what
    stands behind it in a row of lengths is 0 and no span.

    A Poisson process puts Poisson(mean) points into each unit of time if they arrive exponential(1 / mean) apart. So
    hidden token n belongs to the span in whose unit of time point n arrives, and units without a point are spans of
    length 0: exactly the sequence of draws described above, without a loop.

    Cutting the last draw makes hidden / mean + 1/2 spans on average, not hidden / mean: spans are shorter than `mean`
    by the factor 1 / (1 + mean / (2 * hidden)), which is 0.96 for 38 hidden tokens and a mean of 3. The bound on their
    number drops spans of length 0 alone, so that a text never grows: under 3 % of the spans for a mean of 1.5 or more
    and 8 or more hidden tokens, 7 % for a mean of 1 and 38.
    """
    arrival_BN = np.cumsum(rng.standard_exponential((rows, hidden)), axis=1) / mean
    unit_BN = arrival_BN.astype(np.int64)
    span_BN = np.cumsum(np.diff(unit_BN, axis=1, prepend=-1) > 0, axis=1) - 1  # counting units with a point alone
    lengths = _count_in_rows(span_BN, hidden)
    return lengths, np.minimum(unit_BN[:, -1:] + 1, hidden)


def shuffle_sentences(rng: np.random.Generator, tokens_BL: Ids, ends_BL: Truth, documents_BL: Ids | None = None) -> Ids:
    """(B, L): the sentences of each row in random order, every order equally likely.

    A sentence ends with the last of a run of tokens at which `ends_BL` is true, so that `?!` and a full stop before
    </s> end one sentence, not two. What follows the last end is a sentence too. With `documents` (B, L), numbers that
    rise from left to right, sentences end with their document and do not leave it.
    """
    last_BL = ends_BL & ~np.pad(ends_BL[:, 1:], ((0, 0), (0, 1)))
    if documents_BL is not None:
        last_BL = last_BL | (np.diff(documents_BL, axis=1, append=documents_BL[:, -1:]) > 0)
    sentence_BL: Ids = np.cumsum(last_BL, axis=1) - last_BL
    place_BL = np.argsort(rng.random(tokens_BL.shape), axis=1)  # a sentence's place: a permutation, so never a tie
    key_BL = np.take_along_axis(place_BL, sentence_BL, axis=1)
    if documents_BL is not None:
        key_BL = key_BL + tokens_BL.shape[1] * documents_BL
    order_BL = np.argsort(key_BL, axis=1, kind="stable")
    return np.take_along_axis(tokens_BL, order_BL, axis=1)


def choose_words(rng: np.random.Generator, starts_BL: Truth, avoided_BL: Truth, budget: int) -> Truth:
    """(B, L), true on the words chosen in each row. `starts_BL` must be true at a row's first token.

    Words are looked at in random order; one is chosen if all of it still fits into `budget` tokens, else passed over,
    as in BERT's `create_masked_lm_predictions`. Words with a token in `avoided_BL` are passed over too. Where that
    would leave a row without any, its first word in that order is chosen, however long: one that is not to be avoided
    if there is one.
    """
    rows, length = starts_BL.shape
    word_BL = np.cumsum(starts_BL, axis=1) - 1
    avoided_BW = np.zeros((rows, length + 1), np.bool_)  # the last column takes what no word is avoided for
    np.put_along_axis(avoided_BW, np.where(avoided_BL, word_BL, length), True, axis=1)
    order_BW = np.argsort(rng.random((rows, length)), axis=1)
    size_BW = np.take_along_axis(_count_in_rows(word_BL, length), order_BW, axis=1)
    avoided_BW = np.take_along_axis(avoided_BW, order_BW, axis=1)

    chosen_BW, left_B1 = np.zeros((rows, length), np.bool_), np.full((rows, 1), budget)
    # A round takes all words up to the first that does not fit any more; a word too long now is too long ever after.
    while (open_BW := (size_BW > 0) & (size_BW <= left_B1) & ~avoided_BW & ~chosen_BW).any():
        chosen_BW |= open_BW & (np.cumsum(size_BW * open_BW, axis=1) <= left_B1)
        left_B1 = budget - (size_BW * chosen_BW).sum(axis=1, keepdims=True)
    first_B = np.where(size_BW == 0, 2, avoided_BW).argmin(axis=1)
    chosen_BW[np.arange(rows), first_B] |= ~chosen_BW.any(axis=1)

    in_text_order_BW = np.empty_like(chosen_BW)
    np.put_along_axis(in_text_order_BW, order_BW, chosen_BW, axis=1)
    return np.take_along_axis(in_text_order_BW, word_BL, axis=1)


def _count_in_rows(numbers_BN: Ids, width: int) -> Ids:
    """(B, width): how often each number below `width` stands in each row."""
    rows = len(numbers_BN)
    flat = numbers_BN + width * np.arange(rows)[:, None]
    return np.bincount(flat.ravel(), minlength=rows * width).reshape(rows, width)
