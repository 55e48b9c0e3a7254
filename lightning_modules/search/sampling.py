"""Writing token by token, the most probable or one drawn: nothing is taken back, so a text costs its tokens.

Texts drawn for the same source share its encoding, or its prompt. Draws belong to the source and the seed: what else
is in a batch, and what of it is finished, changes none of them.
"""

import hashlib
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from lightning_modules.search.options import Decoding, Hypothesis
from lightning_modules.search.restraints import restrained
from lightning_modules.search.topk import top
from lightning_modules.transformer.model import Decoder, EncoderDecoder
from lightning_modules.transformer.stepping import DecodingState


@dataclass
class Line:
    """A text while it is written: its tokens so far, how many with </s>, and the sum of their log-probabilities."""

    ids: list[int] = field(default_factory=list)
    tokens: int = 0
    total: float = 0.0

    def add(self, token: int, gain: float, eos: int) -> None:
        """The next token, and its log-probability."""
        self.tokens += 1
        self.total += gain
        if token != eos:
            self.ids.append(token)

    def hypothesis(self, penalty: float) -> Hypothesis:
        """The text with its score."""
        return Hypothesis(self.ids, self.total / max(self.tokens, 1) ** penalty)


def write(
    model: Decoder | EncoderDecoder,
    state: DecodingState,
    first_B1: Tensor,
    most: int,
    decoding: Decoding,
    draws_BWT: Tensor | None = None,
) -> list[list[Hypothesis]]:
    """Texts of at most `most` tokens for each source that `state` has read, begun after `first`; best first.

    `draws` are numbers from 0 to below 1 (float64), one for each token to be drawn; without them the most probable
    token is taken.
    """
    width, eos = decoding.answers, model.config.eos_id
    every = [[Line() for _ in range(width)] for _ in first_B1]
    lines = every  # of the rows still in the batch
    last_BW, written_BWT = first_B1, first_B1.expand(-1, width)[:, :, None]
    going_BW = torch.ones_like(written_BWT[:, :, 0], dtype=torch.bool)
    for step in range(most):
        logits_BWV = model.logits(model.step_beams(last_BW, state)).float()
        if step == 0 and width > 1:
            logits_BWV = logits_BWV.expand(-1, width, -1)
            state.branch(torch.zeros_like(going_BW, dtype=torch.long))
        score_BWV = restrained(logits_BWV, written_BWT, decoding) if decoding.restrains else logits_BWV
        if draws_BWT is None:
            token_BW = top(score_BWV, 1)[1][..., 0]
        else:
            token_BW = drawn(score_BWV, draws_BWT[:, :, step], decoding)
        loss_N = functional.cross_entropy(logits_BWV.flatten(0, 1), token_BW.flatten(), reduction="none")
        gain_BW = -loss_N.view_as(token_BW)
        for row in zip(lines, token_BW.tolist(), gain_BW.tolist(), going_BW.tolist(), strict=True):
            for line, token, gain, going in zip(*row, strict=True):
                if going:
                    line.add(token, gain, eos)
        going_BW = going_BW & (token_BW != eos)
        last_BW = token_BW
        if decoding.restrains:  # nobody else asks what stands before
            written_BWT = torch.cat([written_BWT, token_BW[..., None]], dim=-1)
        alive_B = going_BW.any(dim=1)
        if not alive_B.all():
            alive_B = alive_B.nonzero()[:, 0]
            lines = [lines[place] for place in alive_B.tolist()]
            if not lines:
                break
            state.keep(alive_B)
            last_BW, written_BWT, going_BW = (x[alive_B] for x in (last_BW, written_BWT, going_BW))
            draws_BWT = None if draws_BWT is None else draws_BWT[alive_B]
    found = [[line.hypothesis(decoding.length_penalty) for line in row] for row in every]
    return [sorted(row, key=lambda text: -text.score) for row in found]


def drawn(score_BWV: Tensor, draw_BW: Tensor, decoding: Decoding) -> Tensor:
    """A token for each text (B, W): the one in whose stretch of the cumulated probabilities the number falls."""
    share_BWV = narrowed(score_BWV, decoding).double().softmax(dim=-1).cumsum(dim=-1)
    token_BW = (share_BWV <= draw_BW[..., None] * share_BWV[..., -1:]).sum(dim=-1)
    return token_BW.clamp(max=score_BWV.shape[-1] - 1)


def narrowed(score_BWV: Tensor, decoding: Decoding) -> Tensor:
    """Scores ÷ temperature, and -∞ for tokens that are not drawn from: first by top-k, of what is left by top-p, of
    what is left by min-p.

    Top-k: Fan et al. 2018, arXiv:1805.04833, section 5.4; top-p: Holtzman et al. 2020, arXiv:1904.09751, section 3.1;
    min-p: Nguyen et al. 2024, arXiv:2407.01082, section 3.
    """
    score_BWV = score_BWV / decoding.temperature
    if decoding.top_k:
        least_BW1 = score_BWV.topk(min(decoding.top_k, score_BWV.shape[-1])).values[..., -1:]
        score_BWV = score_BWV.masked_fill(score_BWV < least_BW1, float("-inf"))
    if decoding.top_p < 1:
        ordered_BWV, token_BWV = score_BWV.sort(dim=-1, descending=True)
        share_BWV = ordered_BWV.softmax(dim=-1)
        out_BWV = share_BWV.cumsum(dim=-1) - share_BWV >= decoding.top_p  # those before it are enough; never the first
        score_BWV = score_BWV.masked_fill(torch.zeros_like(out_BWV).scatter(-1, token_BWV, out_BWV), float("-inf"))
    if decoding.min_p:
        share_BWV = score_BWV.softmax(dim=-1)
        score_BWV = score_BWV.masked_fill(share_BWV < decoding.min_p * share_BWV.amax(-1, keepdim=True), float("-inf"))
    return score_BWV


def draws(source_BS: Tensor, real_BS: Tensor | None, decoding: Decoding, most: int) -> Tensor | None:
    """Numbers from 0 to below 1, (B, answers, most), of each source and the seed alone; None where nothing is drawn."""
    if not decoding.sample:
        return None
    drawn_BWT = []
    for row, source_S in enumerate(source_BS.cpu()):
        ids = source_S.tolist() if real_BS is None else source_S[real_BS[row].cpu()].tolist()
        digest = hashlib.sha256(f"{decoding.seed} {ids}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
        # A number after the other, so that the first are the same however many there are of them.
        drawn_BWT.append(torch.rand(most, decoding.answers, generator=generator, dtype=torch.float64).T)
    return torch.stack(drawn_BWT).to(source_BS.device)
