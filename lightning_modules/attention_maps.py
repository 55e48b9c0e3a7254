"""Where a fine-tuned model looks while it answers: the attention weights of its last layer, for the eye.

Costs one forward pass more over a single text. Attention weights show what is mixed, not why (Jain and Wallace 2019,
arXiv:1902.10186).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_modules.decoding import greedy
from lightning_modules.text_to_text import TextToText
from lightning_modules.transformer.attention import Attention
from lightning_modules.transformer.heads import Classifier, SpanReader
from lightning_modules.transformer.model import EncoderDecoder


@dataclass(frozen=True)
class AttentionMap:
    """Weights of each head (H, L, S): rows are the tokens that look, columns those looked at."""

    looking: list[str]
    seen: list[str]
    weights_HLS: npt.NDArray[np.float32]


@torch.inference_mode()
def attention_map(answering: TextToText, text: str, most: int) -> AttentionMap:
    """The last layer's map for a text, of which at most `most` tokens are read and `most` written.

    An encoder–decoder's written tokens look at the source, a decoder's at the source and what is written, an encoder's
    source looks at itself.
    """
    model, tokenizer = answering.model, answering.tokenizer
    source = [*tokenizer.encode(text, add_special_tokens=False).ids[: most - 1], model.config.eos_id]
    source_BS = torch.tensor([source], device=answering.device)
    if isinstance(model, SpanReader | Classifier):
        weights_HLS = _weights(model.encoder.encoder.last.attention, lambda: model(source_BS))
        looking = seen = source
    else:
        written = [model.config.bos_id, *greedy(model, source_BS, None, min(most, answering.decoding.max_tokens))[0]]
        block = model.decoder.last
        crossing = isinstance(model, EncoderDecoder)
        target_BT = torch.tensor([written], device=answering.device)
        attention = block.cross_attention if crossing else block.attention
        weights_HLS = _weights(attention, lambda: model(source_BS, target_BT))
        looking, seen = written, source if crossing else [*source, *written]
    return AttentionMap(
        looking=[_shown(tokenizer, token) for token in looking],
        seen=[_shown(tokenizer, token) for token in seen],
        weights_HLS=weights_HLS.float().cpu().numpy(),
    )


def _weights(attention: Attention, forward: Any) -> Tensor:
    """The weights (H, L, S) of the first row while `forward` runs."""
    found: list[Tensor] = []

    def look(module: Attention, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        found.append(module.weights(*args, **{name: value for name, value in kwargs.items() if name != "cache"}))

    hook = attention.register_forward_hook(look, with_kwargs=True)
    try:
        forward()
    finally:
        hook.remove()
    return found[0][0]


def _shown(tokenizer: Any, token: int) -> str:
    return tokenizer.decode([token], skip_special_tokens=False).strip() or "␣"
