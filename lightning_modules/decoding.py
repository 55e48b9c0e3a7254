"""From a trained model to tokens: greedily, by beam search, or by drawing.

Keys and values are cached, finished texts leave the batch: the cost is that of the tokens written.
"""

import torch
from torch import Tensor

from lightning_modules.search.beam_search import beam_search
from lightning_modules.search.options import Decoding, Hypothesis
from lightning_modules.search.sampling import draws, write
from lightning_modules.transformer.model import Decoder, EncoderDecoder
from lightning_modules.transformer.stepping import DecodingState

__all__ = ["Decoding", "Hypothesis", "decode", "greedy"]


@torch.inference_mode()
def decode(
    model: Decoder | EncoderDecoder,
    source_BS: Tensor,
    real_BS: Tensor | None,
    decoding: Decoding,
) -> list[list[Hypothesis]]:
    """`decoding.answers` texts for each source, best first.

    Learned positions end at `max_length`, and so does what is written with them.
    """
    state = model.begin(source_BS, real_BS)
    first_B1 = torch.full((len(source_BS), 1), model.config.bos_id, device=source_BS.device)
    most = _room(model, state, decoding.max_tokens)
    if decoding.beams > 1:
        return beam_search(model, state, first_B1, most, decoding)
    return write(model, state, first_B1, most, decoding, draws(source_BS, real_BS, decoding, most))


@torch.inference_mode()
def greedy(
    model: Decoder | EncoderDecoder,
    source_BS: Tensor,
    real_BS: Tensor | None,
    max_tokens: int,
    first_B1: Tensor | None = None,
) -> list[list[int]]:
    """The most probable token at each step until </s> or `max_tokens`; returns ids without <s> and </s>, a row each.

    Writing begins after <s>, or after the tokens `first`. Learned positions end at `max_length`, and so does what is
    written with them.
    """
    state = model.begin(source_BS, real_BS)
    if first_B1 is None:
        first_B1 = torch.full((len(source_BS), 1), model.config.bos_id, device=source_BS.device)
    written = write(model, state, first_B1, _room(model, state, max_tokens), Decoding(max(max_tokens, 1)))
    return [texts[0].ids for texts in written]


def _room(model: Decoder | EncoderDecoder, state: DecodingState, max_tokens: int) -> int:
    """How many tokens can be written."""
    config = model.config
    return min(max_tokens, config.max_length - state.start) if config.positions == "learned" else max_tokens
