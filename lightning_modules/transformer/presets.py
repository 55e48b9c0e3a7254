"""Shapes by name, as published; a preset is data, and any field can be overridden.

The sizes of the `small-…` ones are this project's: minutes on two CPU cores. tests/test_presets.py holds the others
against the published numbers of parameters, tied ones counted once.
"""

from typing import Any

from lightning_modules.transformer.config import TransformerConfig

_VASWANI = {"architecture": "encoder_decoder", "vocab_size": 37_000, "encoder_layers": 6, "decoder_layers": 6}
_MODERN = {
    "positions": "rotary",
    "activation": "swiglu",
    "norm": "pre",
    "norm_type": "rms",
    "bias": False,
    "scale_embeddings": False,
    "initialization": "normal",
    "dropout": 0.0,
}
_SMALL = {
    "vocab_size": 8192,
    "d_model": 128,
    "heads": 4,
    "d_ff": 512,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "max_length": 512,
    "dropout": 0.0,
}

PRESETS: dict[str, dict[str, Any]] = {
    # Vaswani et al. 2017, arXiv:1706.03762, table 3: 65 M and 213 M parameters with the shared vocabulary of 37 k.
    "vaswani-base": _VASWANI | {"d_model": 512, "heads": 8, "d_ff": 2048, "max_length": 512},
    "vaswani-big": _VASWANI | {"d_model": 1024, "heads": 16, "d_ff": 4096, "max_length": 512, "dropout": 0.3},
    # Devlin et al. 2019, arXiv:1810.04805, section 3: 110 M.
    "bert-base": {
        "architecture": "encoder",
        "vocab_size": 30_522,
        "d_model": 768,
        "heads": 12,
        "d_ff": 3072,
        "encoder_layers": 12,
        "decoder_layers": 0,
        "max_length": 512,
        "attention_dropout": 0.1,
        "positions": "learned",
        "scale_embeddings": False,
        "embedding_norm": True,
        "token_types": 2,
        "activation": "gelu",
        "norm_eps": 1e-12,
        "output_transform": True,
        "output_bias": True,
        "initialization": "normal",
    },
    # Radford et al. 2019 (GPT-2), section 2.3 and table 2; 124 M by the authors' repository, 117 M in the paper.
    "gpt2": {
        "architecture": "decoder",
        "vocab_size": 50_257,
        "d_model": 768,
        "heads": 12,
        "d_ff": 3072,
        "encoder_layers": 0,
        "decoder_layers": 12,
        "max_length": 1024,
        "attention_dropout": 0.1,
        "positions": "learned",
        "scale_embeddings": False,
        "activation": "gelu_tanh",
        "norm": "pre",
        "initialization": "normal",
    },
    # Raffel et al. 2020, arXiv:1910.10683, section 3.7: 60 M.
    "t5-small": {
        "architecture": "encoder_decoder",
        "vocab_size": 32_128,
        "d_model": 512,
        "heads": 8,
        "d_ff": 2048,
        "encoder_layers": 6,
        "decoder_layers": 6,
        "max_length": 512,
        "positions": "relative",
        "scale_embeddings": False,
        "scale_attention": False,
        "scale_logits": True,
        "norm": "pre",
        "norm_type": "rms",
        "norm_eps": 1e-6,
        "bias": False,
        "initialization": "t5",
    },
    # Lewis et al. 2020, arXiv:1910.13461, section 2.1; 140 M by the authors' repository.
    "bart-base": {
        "architecture": "encoder_decoder",
        "vocab_size": 50_265,
        "d_model": 768,
        "heads": 12,
        "d_ff": 3072,
        "encoder_layers": 6,
        "decoder_layers": 6,
        "max_length": 1024,
        "attention_dropout": 0.1,
        "positions": "learned",
        "scale_embeddings": False,
        "embedding_norm": True,
        "activation": "gelu",
        "initialization": "normal",
    },
    # Touvron et al. 2023, arXiv:2302.13971, section 2.2, in the size of SmolLM-135M (its model card): 135 M.
    "llama-style": _MODERN
    | {
        "architecture": "decoder",
        "vocab_size": 49_152,
        "d_model": 576,
        "heads": 9,
        "key_value_heads": 3,
        "d_ff": 1536,
        "encoder_layers": 0,
        "decoder_layers": 30,
        "max_length": 2048,
    },
    # What newer decoders share: rotary positions, RMSNorm before each part, SwiGLU, normalised queries and keys.
    "modern": _MODERN
    | {
        "architecture": "decoder",
        "vocab_size": 32_768,
        "d_model": 768,
        "heads": 12,
        "key_value_heads": 4,
        "d_ff": 2048,
        "encoder_layers": 12,
        "decoder_layers": 12,
        "max_length": 2048,
        "qk_norm": True,
    },
    "small-encoder-decoder": _SMALL | {"architecture": "encoder_decoder", "norm": "pre"},
    "small-decoder": _SMALL | _MODERN | {"architecture": "decoder", "d_ff": 344},
    "small-encoder": _SMALL | {"architecture": "encoder", "norm": "pre"},
}


def preset(name: str, **overrides: Any) -> TransformerConfig:
    """The configuration that `name` stands for, with other values for some fields.

    Raises KeyError for an unknown name, TypeError for an unknown field, ValueError where fields contradict each other.
    """
    return TransformerConfig(**(PRESETS[name] | overrides))
