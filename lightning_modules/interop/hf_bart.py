"""Encoder–decoders that others publish: Marian, Pegasus and BART, which share Hugging Face's names.

Marian (Junczys-Dowmunt et al. 2018, arXiv:1804.00344) is the 2017 paper's; Pegasus (Zhang et al. 2020,
arXiv:1912.08777) normalises before each part; BART (Lewis et al. 2020, arXiv:1910.13461) has learned positions and a
normalisation of the embeddings. Their code fixes ε at 1e-5. The tables of learned positions begin with two rows that
are never read: written as zeros, and left behind on the way in.
"""

from collections.abc import Mapping
from typing import Any

from lightning_modules.errors import PipelineError
from lightning_modules.interop.hf_families import ACTIVATIONS, Family, our_activation
from lightning_modules.interop.hf_weights import Link, layer
from lightning_modules.transformer.config import TransformerConfig


def _config(config: TransformerConfig) -> dict[str, Any]:
    """The configuration of Marian, Pegasus and BART, which share their names."""
    return {
        "vocab_size": config.vocab_size,
        "d_model": config.d_model,
        "encoder_layers": config.encoder_layers,
        "decoder_layers": config.decoder_layers,
        "encoder_attention_heads": config.heads,
        "decoder_attention_heads": config.heads,
        "encoder_ffn_dim": config.d_ff,
        "decoder_ffn_dim": config.d_ff,
        "max_position_embeddings": config.max_length,
        "activation_function": ACTIVATIONS[config.activation],
        "scale_embedding": config.scale_embeddings,
        "dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
        "activation_dropout": 0.0,
        "forced_eos_token_id": None,
        "tie_word_embeddings": config.tied_output,
    }


def _from_theirs(theirs: Any, tensors: Mapping[str, Any]) -> dict[str, Any]:
    for one, other in (("encoder_attention_heads", "decoder_attention_heads"), ("encoder_ffn_dim", "decoder_ffn_dim")):
        if getattr(theirs, one) != getattr(theirs, other):
            raise PipelineError(
                f"{one} {getattr(theirs, one)} and {other} {getattr(theirs, other)} differ: ours are the same"
            )
    return {
        "vocab_size": theirs.vocab_size,
        "d_model": theirs.d_model,
        "encoder_layers": theirs.encoder_layers,
        "decoder_layers": theirs.decoder_layers,
        "heads": theirs.encoder_attention_heads,
        "d_ff": theirs.encoder_ffn_dim,
        "max_length": theirs.max_position_embeddings,
        "activation": our_activation(theirs.activation_function),
        "scale_embeddings": theirs.scale_embedding,
        "dropout": theirs.dropout,
        "attention_dropout": theirs.attention_dropout,
        "tied_output": theirs.tie_word_embeddings,
        "output_bias": bool(tensors["final_logits_bias"].any()),
    }


def _links(config: TransformerConfig) -> list[Link]:
    tables: tuple[str, ...] = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")
    tables += ("lm_head.weight",) if config.tied_output else ()
    links = [
        Link(("embedding.weight_VD",), ("model.shared.weight",), copies=tables),
        Link(("head.bias_V",), ("final_logits_bias",)),
    ]
    if not config.tied_output:
        links.append(Link(("head.weight_VD",), ("lm_head.weight",)))
    for stack, layers in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        if config.positions == "learned":
            name = f"model.{stack}.embed_positions.weight"
            links.append(Link((f"{stack}.positions.weight_LD",), (name,), unread=2))
        if config.embedding_norm:
            links += layer(f"{stack}.embedding_norm", f"model.{stack}.layernorm_embedding")
        if config.norm == "pre":
            links += layer(f"{stack}.norm", f"model.{stack}.layer_norm")
        for number in range(layers):
            links += _block(f"{stack}.blocks.{number}", f"model.{stack}.layers.{number}", cross=stack == "decoder")
    return links


def _block(ours: str, theirs: str, cross: bool) -> list[Link]:
    links = [
        *layer(f"{ours}.attention_residual.norm", f"{theirs}.self_attn_layer_norm"),
        *layer(f"{ours}.feed_forward.inner", f"{theirs}.fc1"),
        *layer(f"{ours}.feed_forward.outer", f"{theirs}.fc2"),
        *layer(f"{ours}.feed_forward_residual.norm", f"{theirs}.final_layer_norm"),
    ]
    attentions = [("attention", "self_attn")]
    if cross:
        attentions.append(("cross_attention", "encoder_attn"))
        links += layer(f"{ours}.cross_residual.norm", f"{theirs}.encoder_attn_layer_norm")
    for our_name, their_name in attentions:
        us, them = f"{ours}.{our_name}", f"{theirs}.{their_name}"
        links += layer(f"{us}.query", f"{them}.q_proj")
        links += layer(f"{us}.key_value", (f"{them}.k_proj", f"{them}.v_proj"))
        links += layer(f"{us}.output", f"{them}.out_proj")
    return links


_BART_LIKE: dict[str, Any] = {
    "architecture": "encoder_decoder",
    "auto_class": "AutoModelForSeq2SeqLM",
    "to_theirs": _config,
    "to_ours": _from_theirs,
    "links": _links,
    "computed": lambda name: name.endswith("embed_positions.weight"),
}
_LAYER_NORMS: dict[str, tuple[Any, ...]] = {
    "norm_type": ("layer",),
    "norm_eps": (1e-5,),
    "activation": tuple(ACTIVATIONS),
}
_SINUSOIDAL = _LAYER_NORMS | {"positions": ("sinusoidal",), "embedding_norm": (False,)}
FAMILIES = [
    Family(
        name="Pegasus",
        config_class="PegasusConfig",
        model_class="PegasusForConditionalGeneration",
        computes=_SINUSOIDAL | {"norm": ("pre",)},
        reads={"is_decoder": (False,)},
        initialization="xavier",
        **_BART_LIKE,
    ),
    Family(
        name="Marian",
        config_class="MarianConfig",
        model_class="MarianMTModel",
        computes=_SINUSOIDAL | {"norm": ("post",)},
        reads={"is_decoder": (False,), "share_encoder_decoder_embeddings": (True,)},
        initialization="xavier",
        **_BART_LIKE,
    ),
    Family(
        name="BART",
        config_class="BartConfig",
        model_class="BartForConditionalGeneration",
        computes=_LAYER_NORMS | {"norm": ("post",), "positions": ("learned",), "embedding_norm": (True,)},
        reads={"is_decoder": (False,)},
        **_BART_LIKE,
    ),
]
