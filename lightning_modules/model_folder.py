"""A trained model on disk: weights (safetensors), configuration and tokenizer in one folder. Nothing is unpickled."""

import hashlib
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from lightning_modules.disk import writing
from lightning_modules.errors import PipelineError
from lightning_modules.transformer.config import TransformerConfig
from lightning_modules.transformer.heads import Classifier, SpanReader
from lightning_modules.transformer.lora import merged_state
from lightning_modules.transformer.model import Decoder, Encoder, EncoderDecoder, make_model

Model = Encoder | Decoder | EncoderDecoder | SpanReader | Classifier


def sha256(path: Path) -> str:
    """Hex digest of a file, read piece by piece."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_model(
    folder: Path, model: Model, tokenizer_file: Path, limits: dict[str, Any], usage: dict[str, Any] | None = None
) -> None:
    """Writes model.safetensors, config.json and tokenizer.json; low-rank updates are merged into their weights.

    `limits` and `usage` say how a task uses the model (`lightning_modules.text_to_text` reads them); after pre-training
    there are none. Raises PipelineError where they cannot be written.
    """
    weights = {name: tensor.contiguous().cpu() for name, tensor in merged_state(model).items()}
    config = {
        "transformer": asdict(model.config),
        "reads_spans": isinstance(model, SpanReader),
        "tokenizer_sha256": sha256(tokenizer_file),
        "limits": limits,
        **(usage or {}),
    }
    if isinstance(model, Classifier):
        config["labels"] = model.labels
    with writing(folder):
        save_file(weights, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        shutil.copymode(folder / "config.json", folder / "model.safetensors")  # safetensors writes for its owner alone
        shutil.copyfile(tokenizer_file, folder / "tokenizer.json")


def read_config(folder: Path) -> dict[str, Any]:
    """config.json, checked against the tokenizer beside it. Raises PipelineError where they do not belong together."""
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        digest, expected = sha256(folder / "tokenizer.json"), config["tokenizer_sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PipelineError(f"{folder} is not a whole model folder ({error!r}): train the model again") from error
    if digest != expected:
        raise PipelineError(f"{folder}/tokenizer.json is not the tokenizer that the model was trained with")
    return config


def load_model(folder: Path, dropout: float = 0.0) -> Model:
    """The model in a folder, on the CPU, with the dropout that training on needs."""
    config = read_config(folder)
    try:
        model: Model = make_model(replace(TransformerConfig(**config["transformer"]), dropout=dropout))
        if config["reads_spans"] and isinstance(model, Encoder):
            model = SpanReader(model)
        elif "labels" in config and isinstance(model, Encoder):
            model = Classifier(model, config["labels"])
        model.load_state_dict(load_file(folder / "model.safetensors"))
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, SafetensorError) as error:
        problem = " ".join(str(error).split())
        raise PipelineError(
            f"{folder}/model.safetensors cannot be read, or does not fit config.json ({problem}): train the model again"
        ) from error
    return model


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in a folder."""
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # tokenizers raises bare Exception
        raise PipelineError(f"{folder}/tokenizer.json cannot be read ({error}): run the tokenizer stage") from error
    tokenizer.encode_special_tokens = True  # `</s>` in a text is text
    return tokenizer


def special_id(tokenizer: Tokenizer, token: str) -> int:
    """Id of a token that every tokenizer here must have."""
    number = tokenizer.token_to_id(token)
    if number is None:
        raise PipelineError(f"the tokenizer has no {token}: run the tokenizer stage again")
    return int(number)


def new_model(config: TransformerConfig, seed: int) -> Encoder | Decoder | EncoderDecoder:
    """A model with freshly drawn weights, the same for the same seed."""
    torch.manual_seed(seed)
    return make_model(config)
