"""Encoders with a head in use: answers as stretches of the source's own characters, and classes with probabilities.

A source longer than the model reads is read in windows, at the cost of two passes over its text. Scores of spans are
compared between windows as they are, the null answer has the least score of all windows, and an answer is given where
it beats that by more than a threshold: Devlin et al. 2019, arXiv:1810.04805, section 4.3, and their released code.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import Tensor

from lightning_modules.batching import pad, source_tensors
from lightning_modules.transformer.config import TransformerConfig
from lightning_modules.transformer.heads import Classifier, SpanReader
from lightning_modules.windows import context_begin, cut_windows, tokens_before

Done = Callable[[int], object]
_NOTHING = float("-inf")


class Span(NamedTuple):
    """The best span of a source: its first and last token, its score, and that of no answer (sums of two logits).

    `probability` is the product of both softmaxes over the columns of its window; `null_probability` of no answer's.
    Where there is no context to point at, the score is -∞.
    """

    first: int = 0
    last: int = 0
    score: float = _NOTHING
    probability: float = 0.0
    null: float = float("inf")
    null_probability: float = 0.0

    def better(self, other: "Span") -> "Span":
        """The best of two windows: the greater score, and the lesser of the null scores."""
        best, least = (other if other.score > self.score else self), (other if other.null < self.null else self)
        return best._replace(null=least.null, null_probability=least.null_probability)


@dataclass(frozen=True)
class SpanAnswer:
    """What a source answers: its characters from `begin` to before `end`; an empty text at 0 where it has no answer.

    `margin` is by how much the best span's score exceeds that of no answer; `probability` is the answer's own.
    """

    text: str
    begin: int
    end: int
    margin: float
    probability: float


def longest_first(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Batches of numbers of texts, in falling order of their lengths, of at most `batch_tokens` tokens or one text."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    while order:
        count = max(1, batch_tokens // lengths[order[0]])
        yield order[:count]
        order = order[count:]


def answer_spans(
    model: SpanReader,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    longest: int,
    most: int,
    threshold: float | None,
    batch_tokens: int,
    done: Done,
) -> list[SpanAnswer]:
    """The answer of each source "question: … context: …", in windows of `longest` tokens, of `most` tokens at most.

    A span of white space alone is no answer. With a `threshold` a source may have none: where the best span's score
    exceeds that of no answer by no more.
    """
    encodings = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    contexts = [tokens_before(found.offsets, context_begin(text)) for text, found in zip(texts, encodings, strict=True)]
    sources = list(zip([found.ids for found in encodings], contexts, strict=True))
    spans = best_spans(model, sources, longest, most, batch_tokens, done)
    answers = []
    for text, found, span in zip(texts, encodings, spans, strict=True):
        margin = span.score - span.null
        none = span.score == _NOTHING or (threshold is not None and margin <= threshold)
        begin, end = (0, 0) if none else (found.offsets[span.first][0], found.offsets[span.last][1])
        stripped = text[begin:end].strip()  # a token may begin with the space before its word
        if not stripped:  # white space alone is no answer either
            answers.append(SpanAnswer("", 0, 0, margin, span.null_probability))
            continue
        begin = text.index(stripped, begin)
        answers.append(SpanAnswer(stripped, begin, begin + len(stripped), margin, span.probability))
    return answers


@torch.inference_mode()
def best_spans(
    model: SpanReader,
    sources: Sequence[tuple[Sequence[int], int]],
    longest: int,
    most: int,
    batch_tokens: int,
    done: Done,
) -> list[Span]:
    """The best span of `most` tokens at most in each source: (ids, how many of them stand before the context)."""
    eos, rows, places = model.config.eos_id, list[list[int]](), list[tuple[int, int, int]]()
    for number, (ids, context) in enumerate(sources):
        windows = cut_windows(len(ids), context, longest)
        for begin in windows.begins:
            rows.append([*ids[: windows.question], *ids[begin : windows.end(begin)], eos])
            places.append((number, windows.question, begin))
    found, left = [Span()] * len(sources), np.bincount([number for number, _, _ in places], minlength=len(sources))
    for batch in longest_first(list(map(len, rows)), batch_tokens):
        spans = _window_spans(model, [rows[n] for n in batch], [places[n][1] for n in batch], most)
        for n, span in zip(batch, spans, strict=True):
            number, question, begin = places[n]
            shift = begin - question
            found[number] = found[number].better(span._replace(first=span.first + shift, last=span.last + shift))
            left[number] -= 1
        done(sum(not left[number] for number in {places[n][0] for n in batch}))
    return found


def _window_spans(model: SpanReader, rows: Sequence[Sequence[int]], questions: Sequence[int], most: int) -> list[Span]:
    """The best span of each window: behind its question, before its </s>; in columns of the window."""
    source_BS, real_BS = _batch(rows, model.config, model.ends.weight.device)
    begin_BS, end_BS = model(source_BS, real_BS).float().unbind(dim=1)
    columns = torch.arange(source_BS.shape[1], device=source_BS.device)
    question_B, last_B = (torch.tensor(n, device=source_BS.device) for n in (questions, [len(row) - 1 for row in rows]))
    context_BS = (columns >= question_B[:, None]) & (columns < last_B[:, None])
    in_order_SS = (
        torch.ones(len(columns), len(columns), dtype=torch.bool, device=source_BS.device).triu().tril(most - 1)
    )
    score_BSS = begin_BS[:, :, None] + end_BS[:, None, :]
    score_BSS.masked_fill_(~(context_BS[:, :, None] & context_BS[:, None, :] & in_order_SS), _NOTHING)
    best_B, place_B = score_BSS.flatten(1).max(dim=1)
    null_B = (begin_BS + end_BS).gather(1, last_B[:, None])[:, 0]
    total_B = begin_BS.logsumexp(dim=1) + end_BS.logsumexp(dim=1)
    numbers = (best_B, (best_B - total_B).exp(), null_B, (null_B - total_B).exp())
    places = (divmod(place, len(columns)) for place in place_B.tolist())
    return [Span(*place, *row) for place, row in zip(places, torch.stack(numbers, dim=1).tolist(), strict=True)]


def best_threshold(
    margin_N: npt.NDArray[np.float64], right_N: npt.NDArray[np.bool_], none_N: npt.NDArray[np.bool_]
) -> float:
    """The threshold with which most of N questions are answered rightly, of several the one nearest to 0.

    `margin` is by how much the best span's score exceeds that of no answer; `right` says whether that span is the
    answer, `none` whether there is none.
    """
    order = np.argsort(margin_N, kind="stable")
    margins_N = margin_N[order]
    # right_at[k]: with the k least margins, and no others, taken for no answer.
    gains_N = none_N[order].astype(np.int64) - right_N[order]
    right_at = np.concatenate([[0], np.cumsum(gains_N)])
    bounds = np.concatenate([[margins_N[0] - 1], (margins_N[:-1] + margins_N[1:]) / 2, [margins_N[-1]]])
    parts = np.concatenate([[True], margins_N[:-1] < margins_N[1:], [True]])  # equal margins stay together
    candidates = bounds[parts & (right_at == right_at[parts].max())]
    return float(candidates[np.abs(candidates).argmin()])


@torch.inference_mode()
def class_probabilities(model: Classifier, sources: Sequence[Sequence[int]], batch_tokens: int, done: Done) -> Tensor:
    """(N, classes) on the CPU, of sources that end in </s>."""
    probability_NC = torch.zeros(len(sources), len(model.labels))
    for batch in longest_first(list(map(len, sources)), batch_tokens):
        source_BS, real_BS = _batch([sources[n] for n in batch], model.config, model.classes.weight.device)
        probability_NC[batch] = model(source_BS, real_BS).float().softmax(dim=-1).cpu()
        done(len(batch))
    return probability_NC


def _batch(
    rows: Sequence[Sequence[int]], config: TransformerConfig, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    source_BS, real_BS = source_tensors(pad(rows, config.pad_id), config.pad_id, pad_left=False)
    return source_BS.to(device), None if real_BS is None else real_BS.to(device)
