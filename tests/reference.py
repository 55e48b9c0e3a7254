"""The same network in another hand: Hugging Face's Marian (post-norm) and Pegasus (pre-norm) with our weights."""

from typing import Any

import torch
from torch import nn
from transformers import MarianConfig, MarianMTModel, PegasusConfig, PegasusForConditionalGeneration

from lightning_modules.transformer.attention import Attention
from lightning_modules.transformer.layers import Block
from lightning_modules.transformer.model import EncoderDecoder


def hugging_face(model: EncoderDecoder) -> Any:
    """A reference with copies of `model`'s weights, in evaluation mode."""
    config = model.config
    made_config, made_class = {
        "post": (MarianConfig, MarianMTModel),
        "pre": (PegasusConfig, PegasusForConditionalGeneration),
    }[config.norm]
    reference = made_class(
        made_config(
            vocab_size=config.vocab_size,
            d_model=config.d_model,
            encoder_layers=config.encoder_layers,
            decoder_layers=config.decoder_layers,
            encoder_attention_heads=config.heads,
            decoder_attention_heads=config.heads,
            encoder_ffn_dim=config.d_ff,
            decoder_ffn_dim=config.d_ff,
            max_position_embeddings=config.max_length,
            activation_function="relu",
            scale_embedding=True,
            dropout=0.0,
            attention_dropout=0.0,
            activation_dropout=0.0,
            pad_token_id=config.pad_id,
            bos_token_id=config.bos_id,
            eos_token_id=config.eos_id,
            decoder_start_token_id=config.bos_id,
            forced_eos_token_id=None,
        )
    ).eval()
    theirs = reference.model
    with torch.no_grad():
        theirs.shared.weight.copy_(model.embedding.weight_VD)
        for stack, blocks in ((theirs.encoder, model.encoder), (theirs.decoder, model.decoder)):
            stack.embed_positions.weight.copy_(model.positions.table_LD)
            for layer, block in zip(stack.layers, blocks, strict=True):
                _copy_block(layer, block)
        if config.norm == "pre":
            _copy(theirs.encoder.layer_norm, model.encoder_norm)
            _copy(theirs.decoder.layer_norm, model.decoder_norm)
    assert theirs.encoder.embed_tokens.weight is theirs.shared.weight
    assert reference.lm_head.weight is theirs.shared.weight
    return reference


def _copy_block(layer: Any, block: Any) -> None:
    assert isinstance(block, Block)
    _copy_attention(layer.self_attn, block.attention)
    _copy(layer.self_attn_layer_norm, block.attention_residual.norm)
    if hasattr(layer, "encoder_attn"):
        _copy_attention(layer.encoder_attn, block.cross_attention)
        _copy(layer.encoder_attn_layer_norm, block.cross_residual.norm)
    _copy(layer.fc1, block.feed_forward.inner)
    _copy(layer.fc2, block.feed_forward.outer)
    _copy(layer.final_layer_norm, block.feed_forward_residual.norm)


def _copy_attention(theirs: Any, ours: Attention) -> None:
    _copy(theirs.q_proj, ours.query)
    _copy(theirs.out_proj, ours.output)
    key, value = ours.key_value.weight.chunk(2)
    key_bias, value_bias = ours.key_value.bias.chunk(2)
    for layer, weight, bias in ((theirs.k_proj, key, key_bias), (theirs.v_proj, value, value_bias)):
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)


def _copy(theirs: Any, ours: nn.Module) -> None:
    theirs.load_state_dict(ours.state_dict())
