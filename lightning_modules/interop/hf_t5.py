"""T5 (Raffel et al. 2020, arXiv:1910.10683), in its first version and in 1.1 (gated; Shazeer 2020, arXiv:2002.05202).

Version 1.0 divides the logits of a tied output by √d_model; 1.1 has an output matrix of its own, and does not. Mixtures
of the two are left out: releases of transformers disagree about them.
"""

from collections.abc import Mapping
from typing import Any

from lightning_modules.interop.hf_families import ACTIVATIONS, ANY, Family, our_activation
from lightning_modules.interop.hf_weights import Link, layer
from lightning_modules.transformer.config import GATED, TransformerConfig

_ACTIVATIONS = ACTIVATIONS | {"geglu_tanh": "gated-gelu", "swiglu": "gated-silu"}


def _config(config: TransformerConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "d_model": config.d_model,
        "d_kv": config.width_of_heads,
        "d_ff": config.d_ff,
        "num_layers": config.encoder_layers,
        "num_decoder_layers": config.decoder_layers,
        "num_heads": config.heads,
        "n_positions": config.max_length,  # not read by anyone: relative positions have no end
        "relative_attention_num_buckets": config.relative_buckets,
        "relative_attention_max_distance": config.relative_distance,
        "dropout_rate": config.dropout,
        "layer_norm_epsilon": config.norm_eps,
        "feed_forward_proj": _ACTIVATIONS[config.activation],
        "tie_word_embeddings": config.tied_output,
    }


def _from_theirs(theirs: Any, tensors: Mapping[str, Any]) -> dict[str, Any]:
    tied = bool((tensors["lm_head.weight"] == tensors["shared.weight"]).all())
    activation = "gated-gelu" if theirs.feed_forward_proj == "gated-gelu_new" else theirs.feed_forward_proj
    return {
        "vocab_size": theirs.vocab_size,
        "d_model": theirs.d_model,
        "head_width": theirs.d_kv,
        "d_ff": theirs.d_ff,
        "encoder_layers": theirs.num_layers,
        "decoder_layers": theirs.num_decoder_layers,
        "heads": theirs.num_heads,
        "max_length": getattr(theirs, "n_positions", 512),
        "relative_buckets": theirs.relative_attention_num_buckets,
        "relative_distance": theirs.relative_attention_max_distance,
        "dropout": theirs.dropout_rate,
        "attention_dropout": theirs.dropout_rate,
        "norm_eps": theirs.layer_norm_epsilon,
        "activation": our_activation(activation, _ACTIVATIONS),
        "tied_output": tied,
        "scale_logits": theirs.scale_decoder_outputs,
    }


def _links(config: TransformerConfig) -> list[Link]:
    tables: tuple[str, ...] = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
    tables += ("lm_head.weight",) if config.tied_output else ()
    links = [Link(("embedding.weight_VD",), ("shared.weight",), copies=tables)]
    if not config.tied_output:
        links.append(Link(("head.weight_VD",), ("lm_head.weight",)))
    for stack, layers in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        bias = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        links.append(Link((f"{stack}.bias.weight_NH",), (bias,)))
        links += layer(f"{stack}.norm", f"{stack}.final_layer_norm", bias=False)
        for number in range(layers):
            gated = config.activation in GATED
            links += _block(f"{stack}.blocks.{number}", f"{stack}.block.{number}.layer", stack == "decoder", gated)
    return links


def _block(ours: str, theirs: str, cross: bool, gated: bool) -> list[Link]:
    parts = [("attention", "attention_residual", "SelfAttention")]
    if cross:
        parts.append(("cross_attention", "cross_residual", "EncDecAttention"))
    links = []
    for number, (attention, residual, name) in enumerate(parts):
        us, them = f"{ours}.{attention}", f"{theirs}.{number}.{name}"
        links += layer(f"{us}.query", f"{them}.q", bias=False)
        links += layer(f"{us}.key_value", (f"{them}.k", f"{them}.v"), bias=False)
        links += layer(f"{us}.output", f"{them}.o", bias=False)
        links += layer(f"{ours}.{residual}.norm", f"{theirs}.{number}.layer_norm", bias=False)
    last = f"{theirs}.{len(parts)}"
    inner = [f"{last}.DenseReluDense.{name}" for name in (("wi_0", "wi_1") if gated else ("wi",))]
    return [
        *links,
        *layer(f"{ours}.feed_forward.inner", tuple(inner), bias=False),
        *layer(f"{ours}.feed_forward.outer", f"{last}.DenseReluDense.wo", bias=False),
        *layer(f"{ours}.feed_forward_residual.norm", f"{last}.layer_norm", bias=False),
    ]


_T5: dict[str, Any] = {
    "architecture": "encoder_decoder",
    "config_class": "T5Config",
    "model_class": "T5ForConditionalGeneration",
    "auto_class": "AutoModelForSeq2SeqLM",
    "reads": {"is_decoder": (False,)},
    "initialization": "t5",
    "to_theirs": _config,
    "to_ours": _from_theirs,
    "links": _links,
}
_COMPUTES: dict[str, tuple[Any, ...]] = {
    "positions": ("relative",),
    "norm": ("pre",),
    "norm_type": ("rms",),
    "bias": (False,),
    "embedding_norm": (False,),
    "scale_embeddings": (False,),
    "scale_attention": (False,),
    "head_width": ANY,
    "output_bias": (False,),
    "activation": tuple(_ACTIVATIONS),
}
FAMILIES = [
    Family(name="T5", computes=_COMPUTES | {"tied_output": (True,), "scale_logits": (True,)}, **_T5),
    Family(name="T5 v1.1", computes=_COMPUTES | {"tied_output": (False,), "scale_logits": (False,)}, **_T5),
]
