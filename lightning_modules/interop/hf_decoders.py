"""Language models that others publish: GPT-2, Llama and Qwen3.

GPT-2 (Radford et al. 2019) keeps its matrices as (in, out), queries, keys and values in one; Llama (Touvron et al.
2023, arXiv:2302.13971; grouped-query attention: arXiv:2307.09288) has rotary positions and SwiGLU, Qwen3 (Yang et al.
2025, arXiv:2505.09388) normalised queries and keys besides. Llama and Qwen3 have no dropout but that of the attention.
"""

from collections.abc import Mapping
from typing import Any

from lightning_modules.errors import PipelineError
from lightning_modules.interop.hf_families import ACTIVATIONS, ANY, Allowed, Family, our_activation
from lightning_modules.interop.hf_weights import Link, layer
from lightning_modules.transformer.config import TransformerConfig


def _gpt2_config(config: TransformerConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "n_embd": config.d_model,
        "n_layer": config.decoder_layers,
        "n_head": config.heads,
        "n_inner": config.d_ff,
        "n_positions": config.max_length,
        "activation_function": ACTIVATIONS[config.activation],
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.attention_dropout,
        "layer_norm_epsilon": config.norm_eps,
        "scale_attn_weights": config.scale_attention,
        "tie_word_embeddings": config.tied_output,
    }


def _from_gpt2(theirs: Any, tensors: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "vocab_size": theirs.vocab_size,
        "d_model": theirs.n_embd,
        "decoder_layers": theirs.n_layer,
        "heads": theirs.n_head,
        "d_ff": theirs.n_inner or 4 * theirs.n_embd,
        "max_length": theirs.n_positions,
        "activation": our_activation(theirs.activation_function),
        "dropout": theirs.resid_pdrop,
        "attention_dropout": theirs.attn_pdrop,
        "norm_eps": theirs.layer_norm_epsilon,
        "scale_attention": theirs.scale_attn_weights,
        "tied_output": theirs.tie_word_embeddings,
    }


def _embedding_links(config: TransformerConfig, name: str) -> list[Link]:
    if config.tied_output:
        return [Link(("embedding.weight_VD",), (name,), copies=("lm_head.weight",))]
    return [Link(("embedding.weight_VD",), (name,)), Link(("head.weight_VD",), ("lm_head.weight",))]


def _gpt2_links(config: TransformerConfig) -> list[Link]:
    links = [
        *_embedding_links(config, "transformer.wte.weight"),
        Link(("decoder.positions.weight_LD",), ("transformer.wpe.weight",)),
        *layer("decoder.norm", "transformer.ln_f"),
    ]
    for number in range(config.decoder_layers):
        us, them = f"decoder.blocks.{number}", f"transformer.h.{number}"
        fused = (f"{us}.attention.query", f"{us}.attention.key_value")
        links += layer(f"{us}.attention_residual.norm", f"{them}.ln_1")
        links += layer(f"{us}.feed_forward_residual.norm", f"{them}.ln_2")
        links += layer(fused, f"{them}.attn.c_attn", transposed=True)
        links += layer(f"{us}.attention.output", f"{them}.attn.c_proj", transposed=True)
        links += layer(f"{us}.feed_forward.inner", f"{them}.mlp.c_fc", transposed=True)
        links += layer(f"{us}.feed_forward.outer", f"{them}.mlp.c_proj", transposed=True)
    return links


def _llama_config(config: TransformerConfig) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rotary_base}
    if config.rotary_scaling != 1.0:
        rope |= {"rope_type": "linear", "factor": config.rotary_scaling}
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.decoder_layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.groups,
        "head_dim": config.width_of_heads,
        "max_position_embeddings": config.max_length,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": rope,
        "attention_dropout": config.attention_dropout,
        "attention_bias": config.bias,
        "mlp_bias": config.bias,
        "tie_word_embeddings": config.tied_output,
    }


def _from_llama(theirs: Any, tensors: Mapping[str, Any]) -> dict[str, Any]:
    rope = theirs.rope_parameters
    if rope["rope_type"] not in ("default", "linear"):
        raise PipelineError(f"rope_type {rope['rope_type']} is not covered: our parts compute default and linear")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise PipelineError("partial_rotary_factor is not covered: our rotary positions turn all of a head")
    if getattr(theirs, "mlp_bias", theirs.attention_bias) != theirs.attention_bias:
        raise PipelineError("attention_bias and mlp_bias differ: our linear layers all have biases, or none has")
    return {
        "vocab_size": theirs.vocab_size,
        "d_model": theirs.hidden_size,
        "d_ff": theirs.intermediate_size,
        "decoder_layers": theirs.num_hidden_layers,
        "heads": theirs.num_attention_heads,
        "key_value_heads": theirs.num_key_value_heads,
        "head_width": theirs.head_dim,
        "max_length": theirs.max_position_embeddings,
        "norm_eps": theirs.rms_norm_eps,
        "rotary_base": float(rope["rope_theta"]),
        "rotary_scaling": float(rope["factor"]) if rope["rope_type"] == "linear" else 1.0,
        "dropout": 0.0,
        "attention_dropout": theirs.attention_dropout,
        "bias": theirs.attention_bias,
        "tied_output": theirs.tie_word_embeddings,
    }


def _llama_links(config: TransformerConfig) -> list[Link]:
    links = [*_embedding_links(config, "model.embed_tokens.weight"), *layer("decoder.norm", "model.norm", bias=False)]
    for number in range(config.decoder_layers):
        us, them = f"decoder.blocks.{number}", f"model.layers.{number}"
        attention, inner = f"{us}.attention", (f"{them}.mlp.gate_proj", f"{them}.mlp.up_proj")
        pair = (f"{them}.self_attn.k_proj", f"{them}.self_attn.v_proj")
        links += layer(f"{us}.attention_residual.norm", f"{them}.input_layernorm", bias=False)
        links += layer(f"{us}.feed_forward_residual.norm", f"{them}.post_attention_layernorm", bias=False)
        links += layer(f"{attention}.query", f"{them}.self_attn.q_proj", config.bias)
        links += layer(f"{attention}.key_value", pair, config.bias)
        links += layer(f"{attention}.output", f"{them}.self_attn.o_proj", config.bias)
        links += layer(f"{us}.feed_forward.inner", inner, config.bias)
        links += layer(f"{us}.feed_forward.outer", f"{them}.mlp.down_proj", config.bias)
        if config.qk_norm:
            links += layer(f"{attention}.query_norm", f"{them}.self_attn.q_norm", bias=False)
            links += layer(f"{attention}.key_norm", f"{them}.self_attn.k_norm", bias=False)
    return links


_DECODER: dict[str, Any] = {"architecture": "decoder", "auto_class": "AutoModelForCausalLM"}
_LLAMA: dict[str, Any] = _DECODER | {"to_theirs": _llama_config, "to_ours": _from_llama, "links": _llama_links}
_PLAIN: Allowed = {"norm": ("pre",), "scale_embeddings": (False,), "embedding_norm": (False,), "output_bias": (False,)}
_LLAMA_COMPUTES: Allowed = _PLAIN | {
    "positions": ("rotary",),
    "norm_type": ("rms",),
    "activation": ("swiglu",),
    "key_value_heads": ANY,
    "head_width": ANY,
}
FAMILIES = [
    Family(
        name="GPT-2",
        config_class="GPT2Config",
        model_class="GPT2LMHeadModel",
        computes=_PLAIN
        | {
            "positions": ("learned",),
            "norm_type": ("layer",),
            "activation": tuple(ACTIVATIONS),
            "scale_attention": ANY,
        },
        reads={"scale_attn_by_inverse_layer_idx": (False,), "add_cross_attention": (False,)},
        to_theirs=_gpt2_config,
        to_ours=_from_gpt2,
        links=_gpt2_links,
        **_DECODER,
    ),
    Family(
        name="Llama",
        config_class="LlamaConfig",
        model_class="LlamaForCausalLM",
        computes=_LLAMA_COMPUTES,
        reads={"hidden_act": ("silu",)},
        **_LLAMA,
    ),
    Family(
        name="Qwen3",
        config_class="Qwen3Config",
        model_class="Qwen3ForCausalLM",
        computes=_LLAMA_COMPUTES | {"qk_norm": (True,), "bias": (False,)},
        reads={"hidden_act": ("silu",), "use_sliding_window": (False,), "attention_bias": (False,)},
        **_LLAMA,
    ),
]
