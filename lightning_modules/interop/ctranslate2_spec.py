"""Our weights in CTranslate2's layout: what of a configuration it can follow, and where each matrix goes.

CTranslate2 (Klein et al. 2020, WNGT, section 4) computes Transformers in C++ without PyTorch. Costs a copy of the
weights in memory. Measured against version 4.8: what it has no counterpart of, or has but computes otherwise, is
refused by the name of the field.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lightning_modules.transformer.attention import Attention
from lightning_modules.transformer.config import GATED, TransformerConfig
from lightning_modules.transformer.layers import Block, FeedForward
from lightning_modules.transformer.model import Decoder, Encoder, EncoderDecoder
from lightning_modules.transformer.positions import LearnedPositions, RelativeBias, SinusoidalPositions
from lightning_modules.transformer.stack import Stack

SHORTEST_TABLE = 1024  # a table of positions has as many rows as max_length, but at least these
_ACTIVATIONS = {
    "relu": "RELU",
    "gelu": "GELU",
    "gelu_tanh": "GELUTanh",
    "silu": "SWISH",
    "swiglu": "SWISH",
    "geglu": "GELU",
    "geglu_tanh": "GELUTanh",
}


def refusals(config: TransformerConfig) -> list[str]:
    """A line for each field that CTranslate2 cannot follow; empty where it can follow all."""
    architecture, positions = config.architecture, config.positions
    checks = [
        (config.activation not in _ACTIVATIONS, "activation", f"{config.activation} is unknown to it"),
        (architecture != "encoder" and config.output_transform, "output_transform", "it has no layer there"),
        (architecture != "decoder" and positions == "alibi", "positions", "alibi is for decoders alone there"),
        (
            architecture == "decoder" and positions == "relative",
            "positions",
            "it counts a prompt's relative positions otherwise",
        ),
        (config.window is not None, "window", "it counts a window otherwise where a prompt is longer"),
        (
            architecture == "encoder_decoder" and config.qk_norm,
            "qk_norm",
            "it does not normalise between encoder and decoder",
        ),
        (config.bidirectional_prefix, "bidirectional_prefix", "it reads a prompt from left to right"),
    ]
    return [f"{field}: {why}" for wrong, field, why in checks if wrong]


def make_spec(model: Encoder | Decoder | EncoderDecoder) -> Any:
    """The model as a specification of CTranslate2; vocabulary and special tokens are still to be set.

    An encoder comes without its output layer: CTranslate2 gives hidden vectors. Embeddings made of characters become
    the matrix that they make.
    """
    from ctranslate2.specs import transformer_spec

    with torch.no_grad():
        embedding_VD = _array(model.embedding(torch.arange(model.config.vocab_size)[None])[0])
        if isinstance(model, Encoder):
            spec = transformer_spec.TransformerEncoderModelSpec(_encoder(model, embedding_VD))
        elif isinstance(model, Decoder):
            spec = transformer_spec.TransformerDecoderModelSpec(_decoder(model, embedding_VD))
        else:
            spec = transformer_spec.TransformerSpec(_encoder(model, embedding_VD), _decoder(model, embedding_VD))
    spec.config.layer_norm_epsilon = model.config.norm_eps
    return spec


def _options(config: TransformerConfig) -> dict[str, Any]:
    """What encoder and decoder specifications are told alike."""
    from ctranslate2.specs import attention_spec, common_spec

    options = {
        "num_heads": config.heads,
        "pre_norm": config.norm == "pre",
        "activation": common_spec.Activation[_ACTIVATIONS[config.activation]],
        "layernorm_embedding": config.embedding_norm,
        "relative_attention_bias": config.positions == "relative",
        "ffn_glu": config.activation in GATED,
        "rms_norm": config.norm_type == "rms",
        "num_heads_kv": config.key_value_heads,
        "head_dim": config.head_width,
        "qk_norm": config.qk_norm,
    }
    if config.positions == "rotary":
        options |= {
            "rotary_dim": config.width_of_heads,
            "rotary_interleave": False,  # pairs are (i, K/2 + i)
            "rotary_base": config.rotary_base,
            "rotary_scaling_type": None if config.rotary_scaling == 1.0 else attention_spec.RotaryScalingType.Linear,
            "rotary_scaling_factor": config.rotary_scaling,
        }
    return options


def _encoder(model: Encoder | EncoderDecoder, embedding_VD: npt.NDArray[np.float32]) -> Any:
    from ctranslate2.specs import common_spec, transformer_spec

    config, types = model.config, model.types if isinstance(model, Encoder) else None
    spec = transformer_spec.TransformerEncoderSpec(
        config.encoder_layers,
        num_source_embeddings=1 if types is None else 2,
        embeddings_merge=common_spec.EmbeddingsMerge.ADD,
        **_options(config),
    )
    spec.embeddings[0].weight = embedding_VD
    if types is not None:  # ours are added to the scaled embeddings, theirs are scaled with them
        spec.embeddings[1].weight = _array(types.weight * (config.d_model**-0.5 if config.scale_embeddings else 1.0))
    _stack(spec, model.encoder)
    return spec


def _decoder(model: Decoder | EncoderDecoder, embedding_VD: npt.NDArray[np.float32]) -> Any:
    from ctranslate2.specs import transformer_spec

    config, head = model.config, model.head
    spec = transformer_spec.TransformerDecoderSpec(
        config.decoder_layers,
        with_encoder_attention=isinstance(model, EncoderDecoder),
        alibi=config.positions == "alibi",
        **_options(config),
    )
    spec.embeddings.weight = embedding_VD
    spec.projection.weight = embedding_VD if head.weight_VD is None else _array(head.weight_VD)
    if head.bias_V is not None:
        spec.projection.bias = _array(head.bias_V)
    if head.scale != 1.0:
        spec.scale_outputs = head.scale
    _stack(spec, model.decoder)
    return spec


def _stack(spec: Any, stack: Stack) -> None:
    spec.scale_embeddings = stack.config.scale_embeddings
    if hasattr(spec, "position_encodings") and stack.rotary is None:
        spec.position_encodings.encodings = _position_table(stack)
    if stack.config.embedding_norm:
        _norm(spec.layernorm_embedding, stack.embedding_norm)
    if stack.config.norm == "pre":
        _norm(spec.layer_norm, stack.norm)
    for layer, block in zip(spec.layer, stack.blocks, strict=True):
        assert isinstance(block, Block)
        _block(layer, block)
        if isinstance(stack.bias, RelativeBias):
            layer.self_attention.relative_attention_bias = _array(stack.bias.weight_NH)
            layer.self_attention.relative_attention_max_distance = np.int32(stack.bias.distance)


def _position_table(stack: Stack) -> npt.NDArray[np.float32]:
    """What is added at each position, (L, D): without a table CTranslate2 would add sinusoids of its own."""
    if isinstance(stack.positions, LearnedPositions):
        return _array(stack.positions.weight_LD)
    rows = max(stack.config.max_length, SHORTEST_TABLE)
    table_1LD = torch.zeros(1, rows, stack.config.d_model)
    if isinstance(stack.positions, SinusoidalPositions):
        table_1LD = stack.positions(table_1LD, torch.arange(rows)[None])
    return _array(table_1LD[0])


def _block(spec: Any, block: Block) -> None:
    own = block.attention
    _norm(spec.self_attention.layer_norm, block.attention_residual.norm)
    _linear(
        spec.self_attention.linear[0], [own.query.weight, own.key_value.weight], [own.query.bias, own.key_value.bias]
    )
    _attention(spec.self_attention, own)
    if hasattr(block, "cross_attention"):
        _norm(spec.attention.layer_norm, block.cross_residual.norm)
        _cross(spec.attention, block.cross_attention)
    _norm(spec.ffn.layer_norm, block.feed_forward_residual.norm)
    _feed_forward(spec.ffn, block.feed_forward)


def _cross(spec: Any, attention: Attention) -> None:
    """Cross-attention has a head of keys and values for each of the queries there: groups are written out."""

    def written_out(part: Tensor) -> Tensor:
        heads = part.view(2, attention.groups, -1, *part.shape[1:])
        return heads.repeat_interleave(attention.heads // attention.groups, dim=1).flatten(0, 2)

    weight, bias = attention.key_value.weight, attention.key_value.bias
    _linear(spec.linear[0], [attention.query.weight], [attention.query.bias])
    _linear(spec.linear[1], [written_out(weight)], [None if bias is None else written_out(bias)])
    if attention.groups != attention.heads:
        spec.num_heads_kv = np.int32(attention.heads)
    _attention(spec, attention)


def _attention(spec: Any, attention: Attention) -> None:
    _linear(spec.linear[-1], [attention.output.weight], [attention.output.bias])
    if attention.scale is not None:
        spec.queries_scale = attention.scale
    if attention.query_norm is not None and attention.key_norm is not None:
        _norm(spec.q_norm, attention.query_norm)
        _norm(spec.k_norm, attention.key_norm)


def _feed_forward(spec: Any, part: FeedForward) -> None:
    weights = part.inner.weight.chunk(2 if part.gated else 1)
    biases = [None, None] if part.inner.bias is None else part.inner.bias.chunk(len(weights))
    _linear(spec.linear_0, [weights[0]], [biases[0]])
    if part.gated:
        _linear(spec.linear_0_noact, [weights[1]], [biases[1]])
    _linear(spec.linear_1, [part.outer.weight], [part.outer.bias])


def _linear(spec: Any, weights: list[Tensor], biases: list[Tensor | None]) -> None:
    """Sets a matrix and its bias, several one below the other."""
    spec.weight = _array(torch.cat(weights))
    known = [bias for bias in biases if bias is not None]
    if known:
        spec.bias = _array(torch.cat(known))


def _norm(spec: Any, norm: nn.Module) -> None:
    assert isinstance(norm, nn.LayerNorm | nn.RMSNorm)
    spec.gamma = _array(norm.weight)
    if isinstance(norm, nn.LayerNorm):
        spec.beta = np.zeros_like(spec.gamma) if norm.bias is None else _array(norm.bias)


def _array(tensor: Tensor) -> npt.NDArray[np.float32]:
    return np.array(tensor.detach(), np.float32)  # a copy: CTranslate2 quantises in place
