"""The same network in two hands: shapes that Hugging Face's classes compute, and how their logits are compared."""

from pathlib import Path
from typing import Any

import tiny
import torch

from lightning_modules.interop.huggingface import to_hugging_face
from lightning_modules.model_folder import save_model
from lightning_modules.transformer.model import shift_right

LEARNED = {"positions": "learned", "scale_embeddings": False, "norm": "post", "embedding_norm": True}
RELATIVE = {
    "positions": "relative",
    "scale_embeddings": False,
    "scale_attention": False,
    "norm_type": "rms",
    "norm_eps": 1e-6,
    "bias": False,
    "relative_buckets": 8,
    "relative_distance": 20,
}
BERT = LEARNED | {"architecture": "encoder", "activation": "gelu", "output_transform": True, "output_bias": True}
GPT2 = {"architecture": "decoder", "positions": "learned", "scale_embeddings": False}
LLAMA = {
    "architecture": "decoder",
    "positions": "rotary",
    "scale_embeddings": False,
    "norm_type": "rms",
    "bias": False,
    "activation": "swiglu",
}
OURS: dict[str, tuple[str, dict[str, Any]]] = {
    "marian": ("MarianMTModel", {"norm": "post", "encoder_layers": 1, "decoder_layers": 3}),
    "marian, relu2": ("MarianMTModel", {"norm": "post", "activation": "relu2", "output_bias": True}),
    "pegasus": ("PegasusForConditionalGeneration", {"norm": "pre"}),
    "pegasus, untied": ("PegasusForConditionalGeneration", {"tied_output": False, "scale_embeddings": False}),
    "bart": ("BartForConditionalGeneration", LEARNED | {"activation": "gelu"}),
    "t5": ("T5ForConditionalGeneration", RELATIVE | {"scale_logits": True}),
    "t5 v1.1": (
        "T5ForConditionalGeneration",
        RELATIVE | {"tied_output": False, "activation": "geglu_tanh", "head_width": 16},
    ),
    "gpt-2": ("GPT2LMHeadModel", GPT2 | {"activation": "gelu_tanh", "d_ff": 48}),
    "gpt-2, unscaled": ("GPT2LMHeadModel", GPT2 | {"scale_attention": False, "tied_output": False}),
    "llama": ("LlamaForCausalLM", LLAMA | {"norm_eps": 1e-6}),
    "llama, grouped": (
        "LlamaForCausalLM",
        LLAMA | {"key_value_heads": 2, "head_width": 16, "rotary_scaling": 2.0, "rotary_base": 500.0, "bias": True},
    ),
    "qwen3": ("Qwen3ForCausalLM", LLAMA | {"key_value_heads": 1, "qk_norm": True, "tied_output": False}),
    "bert": ("BertForMaskedLM", BERT | {"token_types": 2, "norm_eps": 1e-12}),
    "bert, untied": ("BertForMaskedLM", BERT | {"tied_output": False}),
}


def both(ours: Any, theirs: Any, first: list[int], second: list[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Logits of both at real positions, in every way that a batch can be padded."""
    source_BS, target_BT = tiny.batch(1, first, second)
    real_BS, written_BT = source_BS != 0, target_BT != 0
    if ours.config.architecture == "encoder":
        kinds = [None]
        if ours.types is not None:
            kinds.append(torch.arange(source_BS.shape[1])[None].expand_as(source_BS) % ours.config.token_types)
        return [
            (
                ours.logits(ours(source_BS, real_BS, types_BS=types_BS))[real_BS],
                theirs(input_ids=source_BS, attention_mask=real_BS.long(), token_type_ids=types_BS).logits[real_BS],
            )
            for types_BS in kinds
        ]
    shifted_BT = shift_right(target_BT, ours.config.bos_id)
    if ours.config.architecture == "encoder_decoder":
        logits = theirs(
            input_ids=source_BS,
            attention_mask=real_BS.long(),
            decoder_input_ids=shifted_BT,
            decoder_attention_mask=written_BT.long(),
        ).logits
        return [(ours.logits(ours(source_BS, shifted_BT, real_BS))[written_BT], logits[written_BT])]
    alone = theirs(input_ids=shifted_BT, attention_mask=written_BT.long()).logits
    left_BS, real_BS = source_BS.flip(1), real_BS.flip(1)
    mask_BL = torch.cat([real_BS, written_BT], dim=1).long()
    after = theirs(
        input_ids=torch.cat([left_BS, shifted_BT], dim=1),
        attention_mask=mask_BL,
        position_ids=(mask_BL.cumsum(1) - 1).clamp(min=0),
    ).logits[:, left_BS.shape[1] :]
    return [
        (ours.logits(ours(source_BS[:, :0], shifted_BT))[written_BT], alone[written_BT]),
        (ours.logits(ours(left_BS, shifted_BT, real_BS))[written_BT], after[written_BT]),
    ]


def require_equal_logits(ours: Any, theirs: Any, first: list[int], second: list[int]) -> None:
    with torch.inference_mode():
        for logits, expected in both(ours, theirs, first, second):
            assert expected.std() > 0.1  # else any two would be close
            torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


def model_folder(root: Path, model: Any, limits: dict[str, int] | None = None) -> Path:
    folder = root / "model"
    folder.mkdir()
    save_model(folder, model, tiny.write_tokenizer(root / "tokenizer"), limits or {})
    return folder


def published_folder(root: Path, changes: dict[str, Any], tokenizer: bool = True) -> Path:
    """A checkpoint as Hugging Face's own code saves it, with the bare file of a fast tokenizer."""
    folder = root / "published"
    to_hugging_face(tiny.model(**changes)).save_pretrained(folder)
    if tokenizer:
        tiny.write_tokenizer(folder)
    return folder


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
