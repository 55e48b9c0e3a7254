"""What a text written so far forbids or discourages: repeated tokens, repeated n-grams.

All work on scores (B, W, V) of the next token of W texts for each of B sources. Beside a step of the model they cost
little; where `Decoding.restrains` is false, nothing of this is called.
"""

import torch
from torch import Tensor

from lightning_modules.search.options import Decoding


def restrained(score_BWV: Tensor, written_BWT: Tensor, decoding: Decoding) -> Tensor:
    """The scores after the repetition penalty, and -∞ for tokens that would repeat an n-gram.

    `written` begins with what writing began with (<s>), which counts as written. A source does not.
    """
    if decoding.repetition_penalty != 1.0:
        score_BWV = penalized(score_BWV, written_BWT, decoding.repetition_penalty)
    if decoding.no_repeat_ngram:
        score_BWV = score_BWV.masked_fill(
            repeating(written_BWT, decoding.no_repeat_ngram, score_BWV.shape[-1]), float("-inf")
        )
    return score_BWV


def penalized(score_BWV: Tensor, written_BWT: Tensor, penalty: float) -> Tensor:
    """Scores of tokens written before ÷ `penalty`, × where negative (Keskar et al. 2019, arXiv:1909.05858, section 4.1:
    there without the case of negative ones, which division would favour)."""
    score_BWT = score_BWV.gather(-1, written_BWT)
    lower_BWT = torch.where(score_BWT < 0, score_BWT * penalty, score_BWT / penalty)
    return score_BWV.scatter(-1, written_BWT, lower_BWT)


def repeating(written_BWT: Tensor, size: int, vocab_size: int) -> Tensor:
    """(B, W, V), true for tokens that would end a sequence of `size` tokens that was written before (Paulus et al.
    2017, arXiv:1705.04304, section 2.5, for any size)."""
    batch, width, length = written_BWT.shape
    banned_BWV = torch.zeros(batch, width, vocab_size, dtype=torch.bool, device=written_BWT.device)
    if length < size:
        return banned_BWV
    begun_BWN = written_BWT[..., length - size + 1 :]
    window_BWGN = written_BWT.unfold(-1, size, 1)  # G: n-grams written
    again_BWG = (window_BWGN[..., :-1] == begun_BWN[:, :, None]).all(dim=-1)
    # Added, not set: a token that ends several windows stands there several times.
    count_BWV = torch.zeros(batch, width, vocab_size, dtype=torch.int32, device=written_BWT.device)
    return count_BWV.scatter_add_(-1, window_BWGN[..., -1], again_BWG.int()) > 0
