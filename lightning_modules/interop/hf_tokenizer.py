"""The tokenizer beside an exported model, as `AutoTokenizer` loads it: the same file, and which tokens are special.

A model reads what it was trained on, so special tokens are added as in training: </s> after a source of an
encoder–decoder or encoder; <s> before the text of a language model; </s> <s> between the source and the target of a
decoder that was fine-tuned. A published tokenizer keeps its own ways until the model is fine-tuned here. In the texts
of a fine-tuned model special tokens count as text (`split_special_tokens`); in those of a pre-trained one they are
what they say, so that <mask> and <extra_id_0> can be written.
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from lightning_modules.errors import PipelineError
from lightning_modules.transformer.config import TransformerConfig

# Special tokens that the configuration has no id of, by the names that they go by.
_OTHERS = {
    "unk_token": ("<unk>", "[UNK]"),
    "mask_token": ("<mask>", "[MASK]"),
    "cls_token": ("[CLS]",),
    "sep_token": ("[SEP]",),
}


def write_tokenizer(folder: Path, tokenizer: Tokenizer, config: TransformerConfig, limits: dict[str, Any]) -> None:
    """Writes tokenizer.json, tokenizer_config.json and special_tokens_map.json."""
    fine_tuned, decoder = bool(limits), config.architecture == "decoder"
    longest = limits.get("max_source_tokens", config.max_length)
    if fine_tuned or tokenizer.post_processor is None:
        tokenizer.post_processor = _template(tokenizer, config, fine_tuned)
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {
        f"{name}_token": token
        for name, number in (("pad", config.pad_id), ("bos", config.bos_id), ("eos", config.eos_id))
        if (token := tokenizer.id_to_token(number)) is not None
    }
    for name, spellings in _OTHERS.items():
        known = [token for token in spellings if tokenizer.token_to_id(token) is not None]
        special |= {name: known[0]} if known else {}
    settings = special | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": longest + (fine_tuned and decoder),  # a decoder reads <s> after the source
        "padding_side": "left" if decoder else "right",
        "truncation_side": "left" if limits.get("keep_end") else "right",
        "split_special_tokens": fine_tuned,
        "clean_up_tokenization_spaces": False,
        "model_input_names": [
            "input_ids",
            *(["token_type_ids"] if config.token_types > 1 else []),
            "attention_mask",
        ],
    }
    for name, content in (("tokenizer_config.json", settings), ("special_tokens_map.json", special)):
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _template(tokenizer: Tokenizer, config: TransformerConfig, fine_tuned: bool) -> TemplateProcessing:
    """What stands around a text (and a second one), as in training."""
    bos, eos = tokenizer.id_to_token(config.bos_id), tokenizer.id_to_token(config.eos_id)
    if bos is None or eos is None:
        raise PipelineError(f"bos_id {config.bos_id} or eos_id {config.eos_id} is not in the tokenizer")
    before, after = "", f" {eos}"
    if config.architecture == "decoder":
        before, after = ("", f" {eos} {bos}") if fine_tuned else (f"{bos} ", "")
    return TemplateProcessing(
        single=f"{before}$A{after}",
        pair=f"{before}$A {eos} $B{after}",
        special_tokens=list({bos: config.bos_id, eos: config.eos_id}.items()),
    )


def plain_tokenizer(file: Path) -> tuple[str, Tokenizer]:
    """A published tokenizer.json without the cutting and padding that some were saved with: its text, and itself.

    Raises PipelineError where it cannot be read.
    """
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) | {"truncation": None, "padding": None}
        text = json.dumps(content, ensure_ascii=False)
        return text, Tokenizer.from_str(text)
    except Exception as error:  # tokenizers raises bare Exception
        raise PipelineError(f"{file} cannot be read as a tokenizer ({error})") from error
