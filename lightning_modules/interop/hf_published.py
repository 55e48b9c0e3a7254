"""A published checkpoint, opened with care: safetensors alone, no code of its own, every weight accounted for."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer

from lightning_modules.errors import PipelineError
from lightning_modules.interop.hf_mapping import FAMILIES, why_not
from lightning_modules.interop.hf_tokenizer import plain_tokenizer
from lightning_modules.model_folder import special_id
from lightning_modules.transformer.config import TransformerConfig
from lightning_modules.transformer.model import Decoder, Encoder, EncoderDecoder, make_model

Model = Encoder | Decoder | EncoderDecoder


@dataclass(frozen=True)
class Published:
    """A checkpoint in Hugging Face's class, with its tokenizer."""

    model: Any
    tokenizer: Tokenizer
    tokenizer_json: str
    unread: tuple[str, ...]  # weights of other heads than ours

    def with_ids(self, config: TransformerConfig) -> TransformerConfig:
        """The configuration, with ids from the tokenizer for special tokens that the checkpoint's own does not name."""
        theirs = self.model.config

        def first(*tokens: str) -> int | None:
            found = (self.tokenizer.token_to_id(token) for token in tokens)
            return next((number for number in found if number is not None), None)

        ids: dict[str, Any] = {}
        if theirs.pad_token_id is None:
            ids["pad_id"] = first("<pad>", "[PAD]", "<|pad|>", "<unk>")
        if config.architecture == "encoder" and theirs.bos_token_id is None:
            ids["bos_id"] = first("[CLS]", "<s>")
        if theirs.eos_token_id is None:
            ids["eos_id"] = first("[SEP]", "</s>")
        return replace(config, **{name: number for name, number in ids.items() if number is not None})

    def notes(self) -> list[str]:
        """What whoever goes on with the model should know, a line each."""
        return [f"left out, as no part of the network here: {', '.join(self.unread)}"] if self.unread else []


def open_published(source: str | Path) -> Published:
    """A checkpoint from a folder or the Hub. Raises PipelineError where it cannot be taken safely, or not at all."""
    import transformers
    from huggingface_hub.errors import StrictDataclassError
    from transformers.utils import cached_file

    where = str(source)
    if not Path(where).is_dir() and (Path(where).exists() or where.count("/") > 1 or where.startswith((".", "/", "~"))):
        raise PipelineError(f"{where} is no folder: give a checkpoint's folder, or its name on the Hub (owner/name)")
    try:
        config = transformers.AutoConfig.from_pretrained(where, trust_remote_code=False)
        model_class = getattr(transformers, _class_name(config))
        _require_safetensors(where)
        model, loading = model_class.from_pretrained(
            where, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
        file = cached_file(where, "tokenizer.json", _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError, StrictDataclassError) as error:
        raise PipelineError(f"{where} cannot be opened: {' '.join(str(error).split())}") from error
    wrong = sorted({*loading["missing_keys"], *(names[0] for names in loading["mismatched_keys"])})
    if wrong:
        raise PipelineError(f"{where} has no fitting weights for {wrong[0]} (and {len(wrong) - 1} more)")
    if file is None:
        raise PipelineError(
            f"{where} has no tokenizer.json: let transformers convert its tokenizer first "
            "(AutoTokenizer.from_pretrained(…).save_pretrained(…)) and put the file beside the weights"
        )
    text, tokenizer = plain_tokenizer(Path(file))
    if tokenizer.get_vocab_size() > config.vocab_size:
        raise PipelineError(f"{where}: tokenizer.json has more entries than the checkpoint's vocab_size")
    return Published(model.eval(), tokenizer, text, tuple(sorted(loading["unexpected_keys"])))


def with_padding(model: Model, tokenizer_json: str) -> tuple[Model, str]:
    """The model and its tokenizer with a new token <pad>; where the vocabulary has no row to spare, with one more.

    The new row is the mean of the others, so that it scores like the average token and is never the best.
    """
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.add_special_tokens(["<pad>"])
    pad = special_id(tokenizer, "<pad>")
    entries = model.config.vocab_size
    larger = make_model(replace(model.config, pad_id=pad, vocab_size=max(entries, pad + 1))).eval()
    grown = {
        name: torch.cat([tensor, tensor.mean(dim=0, keepdim=True)]) if len(tensor) < len(own) else tensor
        for (name, tensor), own in zip(model.state_dict().items(), larger.state_dict().values(), strict=True)
    }
    larger.load_state_dict(grown)
    return larger, tokenizer.to_str()


def _class_name(config: Any) -> str:
    import transformers

    for family in FAMILIES:
        if getattr(transformers, family.config_class).model_type == config.model_type:
            if getattr(config, "quantization_config", None) is not None:
                raise PipelineError("a quantised checkpoint is not covered: import the one it was made of")
            return family.model_class
    raise PipelineError(why_not(config.model_type, ", ".join(config.architectures or ["a model"])))


def _require_safetensors(where: str) -> None:
    folder = Path(where)
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        pickles = sorted(file.name for file in folder.glob("*.bin")) or ["no weights"]
        raise PipelineError(
            f"{where} has no safetensors ({', '.join(pickles)} there): a pickle can run code when it is read; "
            "convert it where you trust it"
        )
