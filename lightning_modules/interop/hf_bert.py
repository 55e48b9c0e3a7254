"""BERT (Devlin et al. 2019, arXiv:1810.04805), with its head for masked words.

The head's activation is GELU in ours, that of the layers in theirs: so theirs must be GELU too. A model without segment
vectors becomes one with a single segment whose vector is zero, and comes back without.
"""

from collections.abc import Mapping
from typing import Any

from lightning_modules.interop.hf_families import ANY, Family
from lightning_modules.interop.hf_weights import Link, layer
from lightning_modules.transformer.config import TransformerConfig


def _config(config: TransformerConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.encoder_layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.d_ff,
        "hidden_act": "gelu",
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "max_position_embeddings": config.max_length,
        "type_vocab_size": config.token_types or 1,
        "layer_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied_output,
    }


def _from_theirs(theirs: Any, tensors: Mapping[str, Any]) -> dict[str, Any]:
    no_types = theirs.type_vocab_size == 1 and not tensors["bert.embeddings.token_type_embeddings.weight"].any()
    return {
        "vocab_size": theirs.vocab_size,
        "d_model": theirs.hidden_size,
        "encoder_layers": theirs.num_hidden_layers,
        "heads": theirs.num_attention_heads,
        "d_ff": theirs.intermediate_size,
        "dropout": theirs.hidden_dropout_prob,
        "attention_dropout": theirs.attention_probs_dropout_prob,
        "max_length": theirs.max_position_embeddings,
        "token_types": 0 if no_types else theirs.type_vocab_size,
        "norm_eps": theirs.layer_norm_eps,
        "tied_output": theirs.tie_word_embeddings,
        "output_bias": True,
    }


def _links(config: TransformerConfig) -> list[Link]:
    embeddings, head = "bert.embeddings", "cls.predictions"
    tied = (f"{head}.decoder.weight",) if config.tied_output else ()
    links = [
        Link(("embedding.weight_VD",), (f"{embeddings}.word_embeddings.weight",), copies=tied),
        Link(("types.weight",), (f"{embeddings}.token_type_embeddings.weight",)),
        Link(("encoder.positions.weight_LD",), (f"{embeddings}.position_embeddings.weight",)),
        *layer("encoder.embedding_norm", f"{embeddings}.LayerNorm"),
        *layer("head.transform.0", f"{head}.transform.dense"),
        *layer("head.transform.2", f"{head}.transform.LayerNorm"),
        Link(("head.bias_V",), (f"{head}.decoder.bias",), copies=(f"{head}.bias",)),
    ]
    if not config.tied_output:
        links.append(Link(("head.weight_VD",), (f"{head}.decoder.weight",)))
    for number in range(config.encoder_layers):
        us, them = f"encoder.blocks.{number}", f"bert.encoder.layer.{number}"
        own = f"{them}.attention.self"
        links += layer(f"{us}.attention.query", f"{own}.query")
        links += layer(f"{us}.attention.key_value", (f"{own}.key", f"{own}.value"))
        links += layer(f"{us}.attention.output", f"{them}.attention.output.dense")
        links += layer(f"{us}.attention_residual.norm", f"{them}.attention.output.LayerNorm")
        links += layer(f"{us}.feed_forward.inner", f"{them}.intermediate.dense")
        links += layer(f"{us}.feed_forward.outer", f"{them}.output.dense")
        links += layer(f"{us}.feed_forward_residual.norm", f"{them}.output.LayerNorm")
    return links


FAMILIES = [
    Family(
        name="BERT",
        architecture="encoder",
        config_class="BertConfig",
        model_class="BertForMaskedLM",
        auto_class="AutoModelForMaskedLM",
        computes={
            "positions": ("learned",),
            "scale_embeddings": (False,),
            "embedding_norm": (True,),
            "token_types": ANY,
            "norm": ("post",),
            "norm_type": ("layer",),
            "activation": ("gelu",),
            "output_transform": (True,),
        },
        reads={
            "hidden_act": ("gelu",),
            "is_decoder": (False,),
            "add_cross_attention": (False,),
            "position_embedding_type": ("absolute",),
        },
        to_theirs=_config,
        to_ours=_from_theirs,
        links=_links,
    )
]
