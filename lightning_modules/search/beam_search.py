"""Beam search: at each step the best continuations of the best texts so far (Sutskever et al. 2014, arXiv:1409.3215,
section 3.2), scored with a length penalty.

Scores and rules are those of Hugging Face's `generate`: of the 2·W best continuations the first W that are not finished
go on, and those of the first W that are finished stand among the answers; `options.Decoding` says when a source is
done. It then leaves the batch. A step costs one of the model with W columns a source (`transformer.stepping`), and
finding the best of W·V continuations: each text's own best first, found by the greatest of each block of 64 tokens.
"""

from dataclasses import dataclass, field
from heapq import nlargest

import torch
from torch import Tensor

from lightning_modules.search.options import Decoding, Hypothesis
from lightning_modules.search.restraints import restrained
from lightning_modules.search.topk import top
from lightning_modules.transformer.model import Decoder, EncoderDecoder
from lightning_modules.transformer.stepping import DecodingState


@dataclass
class Finished:
    """The best finished texts of a source, at most `beams`, best first."""

    decoding: Decoding
    best: list[Hypothesis] = field(default_factory=list)

    def add(self, ids: list[int], total: float, length: int) -> None:
        """One more, of `length` tokens with </s>, whose log-probabilities sum to `total`."""
        score = total / length**self.decoding.length_penalty
        self.best = nlargest(self.decoding.beams, [*self.best, Hypothesis(ids, score)], key=lambda text: text.score)

    def done(self, total: float, length: int, most: int) -> bool:
        """Whether the unfinished texts, of `length` tokens, are not awaited; the best of them sums to `total`."""
        decoding = self.decoding
        if total == float("-inf"):
            return True  # nothing goes on
        if decoding.stop == "exact":
            reached = most if decoding.length_penalty > 0 else length + 1
            enough = len(self.best) >= decoding.answers
            return enough and self.best[decoding.answers - 1].score >= total / reached**decoding.length_penalty
        if len(self.best) < decoding.beams:
            return False
        return decoding.stop == "full" or self.best[-1].score >= total / length**decoding.length_penalty


def beam_search(
    model: Decoder | EncoderDecoder,
    state: DecodingState,
    first_B1: Tensor,
    most: int,
    decoding: Decoding,
) -> list[list[Hypothesis]]:
    """The best texts of at most `most` tokens for each source that `state` has read, begun after `first`."""
    eos, beams = model.config.eos_id, decoding.beams
    rows = list(range(len(first_B1)))
    finished = [Finished(decoding) for _ in rows]
    last_BW, written_BWT = first_B1, first_B1[:, :, None]
    total_BW = torch.zeros(first_B1.shape, device=first_B1.device)
    for length in range(1, most + 1):
        score_BWV = model.logits(model.step_beams(last_BW, state)).float().log_softmax(dim=-1)
        if decoding.restrains:
            score_BWV = restrained(score_BWV, written_BWT, decoding)
        found = best_continuations(score_BWV, total_BW, 2 * beams)
        _collect(finished, rows, written_BWT, found, length, most, decoding, eos)
        token_BC = found[2]
        # Each text has one continuation by </s>: so many others there are at least.
        width = min(beams, token_BC.shape[1] - last_BW.shape[1])
        going_BW = (token_BC == eos).int().argsort(dim=1, stable=True)[:, :width]
        total_BW, parent_BW, last_BW = (x.gather(1, going_BW) for x in found)
        alive = [
            place
            for place, (row, total) in enumerate(zip(rows, total_BW[:, 0].tolist(), strict=True))
            if not finished[row].done(total, length, most)
        ]
        if not alive or length == most:
            break
        if len(alive) < len(rows):
            rows = [rows[place] for place in alive]
            alive_B = torch.tensor(alive, device=last_BW.device)
            state.keep(alive_B)
            total_BW, parent_BW, last_BW, written_BWT = (
                x[alive_B] for x in (total_BW, parent_BW, last_BW, written_BWT)
            )
        state.branch(parent_BW)
        written_BWT = written_BWT.gather(1, parent_BW[..., None].expand(-1, -1, length))
        written_BWT = torch.cat([written_BWT, last_BW[..., None]], dim=-1)
    nothing = [Hypothesis([], float("-inf"))]  # where there was no room, or everything was forbidden
    return [texts.best[: decoding.answers] or nothing for texts in finished]


def _collect(
    finished: list[Finished],
    rows: list[int],
    written_BWT: Tensor,
    found: tuple[Tensor, Tensor, Tensor],
    length: int,
    most: int,
    decoding: Decoding,
    eos: int,
) -> None:
    """Adds what the step finished: of the best continuations those by </s>, and all of them at the limit."""
    total_BC, parent_BC, token_BC = (x[:, : decoding.beams] for x in found)
    ends_BC = (token_BC == eos) | (length == most)
    for place, rank in (ends_BC & total_BC.isfinite()).nonzero().tolist():
        texts = finished[rows[place]]
        token, total = int(token_BC[place, rank]), float(total_BC[place, rank])
        ids = written_BWT[place, parent_BC[place, rank], 1:].tolist()
        texts.add(ids if token == eos else [*ids, token], total, length)


def best_continuations(score_BWV: Tensor, before_BW: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `count` best of each row's W·V continuations, or all: totals, texts and tokens, each (B, C), best first.

    A continuation's total is its score and what its text had `before`.
    """
    score_BWC, token_BWC = top(score_BWV, min(count, score_BWV.shape[-1]))
    total_BN = (score_BWC + before_BW[..., None]).flatten(1)
    total_BC, place_BC = total_BN.topk(min(count, total_BN.shape[1]))
    return total_BC, place_BC // score_BWC.shape[-1], token_BWC.flatten(1).gather(1, place_BC)
