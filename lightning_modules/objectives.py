"""Pre-training objectives: rows of token ids → (source, target), vectorised over the batch.

An objective is called anew for each batch, so a row is corrupted differently in every epoch; the same generator, or key
of one, gives the same result. `python -m benchmarks.objectives` says what each costs.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lightning_modules.errors import PipelineError
from lightning_modules.spans import (
    Ids,
    Truth,
    choose_words,
    hidden_tokens,
    poisson_spans,
    random_parts,
    shuffle_sentences,
)

# A key stands for the generator that numpy makes of it, which takes longer than to read a small batch: so it is made
# only where an objective draws from it.
Random = np.random.Generator | tuple[int, ...]


class Corrupted(NamedTuple):
    """What is read, what is to be written, and the numbers of the documents of the columns of both (None: untold)."""

    source_BS: Ids
    target_BT: Ids
    documents: tuple[Ids, Ids] | None


class Objective(ABC):
    """What is read and what is to be written, made of rows of text."""

    def __call__(self, tokens_BL: Ids, random: Random) -> tuple[Ids, Ids]:
        """Ids (B, L ≥ 1) without padding, which may hold </s> → source (B, S), target (B, T), padded at the end."""
        return self.packed(tokens_BL, None, random)[:2]

    @abstractmethod
    def packed(self, tokens_BL: Ids, documents_BL: Ids | None, random: Random) -> Corrupted:
        """The same of rows into which documents are packed, and the documents of the source's and target's columns.

        `documents` (B, L) numbers them, rising from left to right; None where they are not told apart. A token belongs
        to the document that it comes from; one that stands for others, to that of the first of them; a closing </s>, to
        the last.
        """
        ...


@dataclass(frozen=True)
class CausalLM(Objective):
    """Every token from those before it (Radford et al. 2018, "Improving language understanding", section 3.1)."""

    def packed(self, tokens_BL: Ids, documents_BL: Ids | None, random: Random) -> Corrupted:
        """Ids (B, L) → source (B, 0), target (B, L)."""
        return _cut(tokens_BL, documents_BL, 0)


@dataclass(frozen=True)
class PrefixLM(Objective):
    """The rest of a row from its beginning (Raffel et al. 2020, arXiv:1910.10683, sections 3.2.3 and 3.3.1).

    A model that reads the beginning in both directions is Liu et al. 2018's (arXiv:1801.10198) as T5's paper, section
    3.2.1, describes it. All rows of a batch are cut at the same random place, so nothing is padded.
    """

    def packed(self, tokens_BL: Ids, documents_BL: Ids | None, random: Random) -> Corrupted:
        """Ids (B, L) → source (B, S), target (B, L - S), S from 1 to L - 1, all equally likely; S = 0 where L = 1."""
        length = tokens_BL.shape[1]
        cut = int(np.random.default_rng(random).integers(1, length)) if length > 1 else 0
        return _cut(tokens_BL, documents_BL, cut)


@dataclass(frozen=True, eq=False)
class MaskedLM(Objective):
    """BERT's objective (Devlin et al. 2019, arXiv:1810.04805, section 3.1 and appendix A.1).

    Of each row max(1, round(L * corruption_rate)) tokens are to be predicted. For each of them on its own, as in BERT's
    code, the source holds <mask> (80 %), a random regular token (10 %; now and then the right one) or the token
    itself (10 %). Special tokens (ids below `first_regular_id`) are not chosen, except one where a row holds nothing
    else; a row with fewer regular tokens than that has all of them predicted.

    With `word_starts` (V,), true for tokens that begin a word, whole words are chosen (the BERT repository's release of
    May 31st, 2019): in random order, each that still fits into the number above; one where none fits. So there may be
    fewer tokens to predict, and more only where a single word is longer. A word goes on until the next start, special
    token or end of the row; what a row begins with is a word too. Within a word the three-way draw is still per token.
    """

    corruption_rate: float
    mask_id: int
    pad_id: int
    first_regular_id: int
    vocab_size: int
    word_starts: Truth | None

    def packed(self, tokens_BL: Ids, documents_BL: Ids | None, random: Random) -> Corrupted:
        """Ids (B, L) → source (B, L), target (B, L): the token where it is to be predicted, pad_id elsewhere."""
        rng = np.random.default_rng(random)
        special_BL = tokens_BL < self.first_regular_id
        starts_BL = np.ones_like(special_BL)
        if self.word_starts is not None:
            starts_BL[:, 1:] = self.word_starts[tokens_BL[:, 1:]] | special_BL[:, 1:] | special_BL[:, :-1]
        budget = max(1, round(tokens_BL.shape[1] * self.corruption_rate))
        chosen_BL = choose_words(rng, starts_BL, special_BL, budget)
        random_BL = rng.integers(self.first_regular_id, self.vocab_size, tokens_BL.shape)
        draw_BL = rng.random(tokens_BL.shape)
        changed_BL = np.where(draw_BL < 0.8, self.mask_id, np.where(draw_BL < 0.9, random_BL, tokens_BL))
        documents = None if documents_BL is None else (documents_BL, documents_BL)
        source_BL = np.where(chosen_BL, changed_BL, tokens_BL)
        return Corrupted(source_BL, np.where(chosen_BL, tokens_BL, self.pad_id), documents)


@dataclass(frozen=True)
class SpanCorruption(Objective):
    """T5's objective (Raffel et al. 2020, arXiv:1910.10683, section 3.1.4 and figure 2).

    Spans of the text are each replaced by one sentinel token; the target lists every sentinel followed by what it
    hides. The number of hidden tokens and of spans is fixed by the row's length, so all rows come out equally long and
    nothing is padded.
    """

    corruption_rate: float
    mean_span_length: float
    first_sentinel: int
    sentinels: int
    eos_id: int
    sentinel_step: int = 1  # from the id of a sentinel to that of the next; -1 in T5's own vocabulary

    def spans_and_noise(self, length: int) -> tuple[int, int]:
        """(spans, hidden tokens) in a row: at least one of each, one token left to see where there are two or more."""
        noise = hidden_tokens(length, self.corruption_rate)
        spans = min(max(round(noise / self.mean_span_length), 1), noise, max(length - noise, 1))
        if spans > self.sentinels:
            raise PipelineError(
                f"pretrain.sequence_length {length} at corruption_rate {self.corruption_rate} and mean_span_length "
                f"{self.mean_span_length} needs {spans} sentinels, the tokenizer has {self.sentinels}: "
                "shorten the sequences or lengthen the spans"
            )
        return spans, noise

    def packed(self, tokens_BL: Ids, documents_BL: Ids | None, random: Random) -> Corrupted:
        """Ids (B, L) → source (B, L - noise + spans + 1), target (B, noise + spans + 1), both ending in </s>."""
        rng, (rows, length) = np.random.default_rng(random), tokens_BL.shape
        spans, noise = self.spans_and_noise(length)
        # Seen and hidden stretches alternate, as in T5: a row's first token is never hidden, its last always.
        lengths = np.stack(
            [random_parts(rng, rows, length - noise, spans), random_parts(rng, rows, noise, spans)], axis=2
        ).reshape(rows, 2 * spans)
        begins_BL = np.zeros_like(tokens_BL)
        np.put_along_axis(begins_BL, np.cumsum(lengths, axis=1)[:, :-1], 1, axis=1)
        stretch_BL = np.cumsum(begins_BL, axis=1)
        hidden_BL = stretch_BL % 2 == 1
        starts_BL = hidden_BL & (begins_BL == 1)
        sentinel_BL = self.first_sentinel + self.sentinel_step * (stretch_BL // 2)

        in_source_BL = ~hidden_BL | starts_BL
        # Each position offers (its sentinel, its token); a span's start takes both, the rest of the span the token.
        in_target_BL2 = np.stack([starts_BL, hidden_BL], axis=2)

        def sides(begins_BL: Ids, tokens_BL: Ids, last_B1: Ids) -> tuple[Ids, Ids]:
            source = np.where(starts_BL, begins_BL, tokens_BL)[in_source_BL].reshape(rows, -1)
            target = np.stack([begins_BL, tokens_BL], axis=2)[in_target_BL2].reshape(rows, -1)
            return np.concatenate([source, last_B1], axis=1), np.concatenate([target, last_B1], axis=1)

        documents = None if documents_BL is None else sides(documents_BL, documents_BL, documents_BL[:, -1:])
        return Corrupted(*sides(sentinel_BL, tokens_BL, np.full((rows, 1), self.eos_id)), documents)


@dataclass(frozen=True, eq=False)
class Denoising(Objective):
    """BART's objective (Lewis et al. 2020, arXiv:1910.13461, section 2.2): sentence permutation, then text infilling.

    Sentences end in a token for which `sentence_ends` (V,) is true, or in </s>; all sentences of a row change places,
    across documents too unless these are told apart. Then spans are each replaced by one <mask>, and a <mask> put in
    where a span has length 0. A row's number of hidden tokens is fixed by its length; the lengths of spans are
    Poisson(mean_span_length), cut at that number (`poisson_spans` says what this changes). Every order of the spans and
    the tokens left to see is equally likely, so two spans may touch, and a token nearer to an end of the row than spans
    are long is hidden less often (as in the paper's code at the beginning). The paper has mean_span_length 3, its large
    model corruption_rate 0.3 (section 5.1).
    """

    corruption_rate: float
    mean_span_length: float
    mask_id: int
    pad_id: int
    eos_id: int
    sentence_ends: Truth

    def packed(self, tokens_BL: Ids, documents_BL: Ids | None, random: Random) -> Corrupted:
        """Ids (B, L) → source (B, S ≤ L + 1), corrupted, and target (B, L + 1), the row, both ending in </s>."""
        rng = np.random.default_rng(random)
        ends_BL = self.sentence_ends[tokens_BL] | (tokens_BL == self.eos_id)
        shuffled_BL = shuffle_sentences(rng, tokens_BL, ends_BL, documents_BL)
        source_BS, place_BS = self._infilled(shuffled_BL, rng)
        target_BT = np.pad(tokens_BL, ((0, 0), (0, 1)), constant_values=self.eos_id)
        documents = None
        if documents_BL is not None:
            of_target_BT = np.pad(documents_BL, ((0, 0), (0, 1)), mode="edge")
            documents = np.take_along_axis(documents_BL, place_BS, axis=1), of_target_BT
        return Corrupted(source_BS, target_BT, documents)

    def _infilled(self, tokens_BL: Ids, rng: np.random.Generator) -> tuple[Ids, Ids]:
        """The source, and the column of the row that each of its columns stands for, or the first of them."""
        rows, length = tokens_BL.shape
        hidden = hidden_tokens(length, self.corruption_rate)
        seen = length - hidden
        lengths, spans_B1 = poisson_spans(rng, rows, hidden, self.mean_span_length)
        # Each seen token and each span is an item; items are put into random order, then say what they cover.
        size_BL = np.concatenate([np.ones((rows, seen), np.int64), lengths], axis=1)
        items_B1 = seen + spans_B1
        keys_BL = np.where(np.arange(length) < items_B1, rng.random((rows, length)), 1.0)  # 1: no item, so at the end
        order_BL = np.argsort(keys_BL, axis=1)
        size_BL = np.take_along_axis(size_BL, order_BL, axis=1)
        covered_BL = np.minimum(np.cumsum(size_BL, axis=1) - size_BL, length - 1)
        shown_BL = np.where(order_BL < seen, np.take_along_axis(tokens_BL, covered_BL, axis=1), self.mask_id)
        place = np.arange(int(items_B1.max()) + 1)
        shown_BS = np.pad(shown_BL, ((0, 0), (0, 1)))[:, : len(place)]
        source = np.where(place < items_B1, shown_BS, np.where(place == items_B1, self.eos_id, self.pad_id))
        return source, np.where(place < items_B1, np.pad(covered_BL, ((0, 0), (0, 1)))[:, : len(place)], length - 1)


@dataclass(frozen=True)
class Mixture(Objective):
    """Several objectives, each batch made by one of them, drawn by weight.

    The idea is UL2's (Tay et al. 2022, arXiv:2205.05131, section 3.1, "Mixture of Denoisers"), which however mixes
    examples within a batch and tells the model by a token which objective made each.
    """

    parts: tuple[tuple[Objective, float], ...]

    def __post_init__(self) -> None:
        if not self.parts or not all(0 < weight < math.inf for _, weight in self.parts):
            raise PipelineError("pretrain.objective: a mixture needs objectives, each with a weight above 0")

    def packed(self, tokens_BL: Ids, documents_BL: Ids | None, random: Random) -> Corrupted:
        """Ids (B, L) → what the drawn objective makes of them."""
        rng, weights = np.random.default_rng(random), np.array([weight for _, weight in self.parts])
        objective, _ = self.parts[int(rng.choice(len(weights), p=weights / weights.sum()))]
        return objective.packed(tokens_BL, documents_BL, rng)


def _cut(tokens_BL: Ids, documents_BL: Ids | None, cut: int) -> Corrupted:
    """Rows as source and target: up to column `cut`, and from there on."""
    documents = None if documents_BL is None else (documents_BL[:, :cut], documents_BL[:, cut:])
    return Corrupted(tokens_BL[:, :cut], tokens_BL[:, cut:], documents)
