"""First weights, as the source of each shape draws them. Costs two passes over the parameters.

- xavier: Glorot and Bengio's uniform matrices, as the 2017 paper's code has them; embeddings of deviation 1/√d_model,
  which × √d_model have unit variance going in and give logits of unit variance coming out.
- normal: deviation 0.02 for all matrices (BERT, arXiv:1810.04805; GPT-2, Radford et al. 2019, section 2.3; BART).
- t5: deviations by the width that is summed over, embeddings of deviation 1 (as released with arXiv:1910.10683).

Before-the-part normalisation lets the residual grow with depth: what writes into it starts smaller by the root of the
number of writers (GPT-2, section 2.3), except in T5, whose code does not.
"""

import torch
from torch import Tensor, nn

from lightning_modules.transformer.attention import Attention
from lightning_modules.transformer.config import TransformerConfig
from lightning_modules.transformer.embeddings import CharacterEmbedding, TokenEmbedding
from lightning_modules.transformer.layers import FeedForward, OutputHead
from lightning_modules.transformer.positions import LearnedPositions, RelativeBias
from lightning_modules.transformer.stack import Stack

_DEVIATION = 0.02


@torch.no_grad()
def initialize(model: nn.Module) -> None:
    """Draws all weights of a model that has a `config` and stacks; biases start at zero, normalisations at one.

    On the meta device, where models are made to be counted, there is nothing to draw, and torch would load its
    compiler for it: 2 s.
    """
    config = model.config
    assert isinstance(config, TransformerConfig)
    if next(model.parameters()).is_meta:
        return
    fused = {part: count for module in model.modules() for part, count in _fused(module)}
    for module in model.modules():
        if isinstance(module, nn.Linear):
            for part in module.weight.chunk(fused.get(module, 1)):
                _matrix(part, config)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, TokenEmbedding | OutputHead | LearnedPositions | nn.Embedding | RelativeBias):
            for parameter in module.parameters(recurse=False):
                if parameter.ndim == 2:
                    nn.init.normal_(parameter, std=_table_deviation(module, config))
    for module in model.modules():
        if isinstance(module, Attention) and config.initialization == "t5" and not config.scale_attention:
            nn.init.normal_(module.query.weight, std=(config.d_model * config.width_of_heads) ** -0.5)
        elif isinstance(module, CharacterEmbedding):
            _characters(module)
        elif isinstance(module, Stack) and config.norm == "pre":
            _prepare_residual(module, config)


def _fused(module: nn.Module) -> list[tuple[nn.Module, int]]:
    """Linear layers that are several in one, and how many: each part is drawn by itself."""
    if isinstance(module, Attention):
        return [(module.key_value, 2)]
    if isinstance(module, FeedForward):
        return [(module.inner, 2 if module.gated else 1)]
    return [(module.highway, 2)] if isinstance(module, CharacterEmbedding) else []


def _prepare_residual(stack: Stack, config: TransformerConfig) -> None:
    """Makes what writes into a pre-norm residual quieter, and the last norm too where it faces the tied embeddings."""
    if config.initialization != "t5":
        writers = [
            part.output if isinstance(part, Attention) else part.outer
            for part in stack.modules()
            if isinstance(part, Attention | FeedForward)
        ]
        for writer in writers:
            writer.weight.mul_(len(writers) ** -0.5)
    if config.tied_output and config.scale_embeddings and (stack.causal or config.architecture == "encoder"):
        # The residual carries a token's own embedding to the end, where the tied matrix gives it a logit of about
        # √d_model. Quieter at first, a fresh model guesses evenly: 10.6 → 6.4 nats over 600 entries at width 192, and
        # still 0.15–0.2 nats better after 240 steps.
        nn.init.constant_(stack.norm.weight, config.d_model**-0.25)  # type: ignore[arg-type]


def _matrix(weight: Tensor, config: TransformerConfig) -> None:
    if config.initialization == "xavier":
        nn.init.xavier_uniform_(weight)
    elif config.initialization == "normal":
        nn.init.normal_(weight, std=_DEVIATION)
    else:
        nn.init.normal_(weight, std=weight.shape[1] ** -0.5)


def _table_deviation(module: nn.Module, config: TransformerConfig) -> float:
    if config.initialization == "normal":
        return _DEVIATION
    if config.initialization == "t5" and isinstance(module, TokenEmbedding):
        return 1.0
    return config.d_model**-0.5


def _characters(module: CharacterEmbedding) -> None:
    """Unit deviation, whatever the rule: from quieter characters the filters make vectors that are nearly the same for
    all tokens. With the 0.02 of `normal` a small decoder is 0.5 nats behind after 150 steps."""
    nn.init.normal_(module.character.weight)
    nn.init.zeros_(module.character.weight[0])  # no character
    for layer in module.filters:
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
