"""Exchange models with Hugging Face: `export` a model folder, or `import` a published checkpoint into one.

    python -m lightning_modules.interop.huggingface export models/translation exported/hugging-face
    python -m lightning_modules.interop.huggingface import path/to/checkpoint imported/NAME

An exported folder is loaded by transformers (AutoModel…, AutoTokenizer) without this project. What can be exported and
imported: Marian, Pegasus, BART, T5, GPT-2, Llama, Qwen3 and BERT. Weights are read from safetensors alone, code of a
checkpoint is never run, and nothing stays on disk unless both sides' logits agree within 1e-4 on the same texts. A
model of 124 million parameters takes half a minute on two cores and 4 GB of memory.
"""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_modules.errors import PipelineError
from lightning_modules.interop.command import exit_status
from lightning_modules.interop.folders import new_folder
from lightning_modules.interop.hf_card import card
from lightning_modules.interop.hf_generation import generation_notes, generation_settings
from lightning_modules.interop.hf_mapping import family_of, from_hugging_face, to_hugging_face
from lightning_modules.interop.hf_parity import TEXTS, require_parity
from lightning_modules.interop.hf_published import open_published, with_padding
from lightning_modules.interop.hf_tokenizer import write_tokenizer
from lightning_modules.model_folder import load_model, load_tokenizer, read_config, save_model, sha256
from lightning_modules.text_to_text import read_usage
from lightning_modules.transformer.config import TransformerConfig
from lightning_modules.transformer.heads import Classifier, SpanReader

__all__ = ["export", "from_hugging_face", "import_model", "to_hugging_face"]


def export(model_folder: Path, output: Path) -> None:
    """Writes `output`, which `AutoModel…` and `AutoTokenizer.from_pretrained` load without this project; `generate`
    there searches as `decoding` in config.json says.

    Raises PipelineError, and leaves nothing, where no standard class computes what the model does, or what was written
    gives other logits than the model on the same texts.
    """
    import transformers

    saved = read_config(model_folder)
    limits: dict[str, Any] = saved.get("limits", {})
    decoding = read_usage(model_folder).decoding if limits else None
    model = load_model(model_folder, dropout=saved["transformer"]["dropout"]).eval()
    tokenizer = load_tokenizer(model_folder)
    theirs = to_hugging_face(model)
    assert not isinstance(model, SpanReader | Classifier)
    config, family = model.config, family_of(model.config)
    if tokenizer.get_vocab_size() > config.vocab_size:
        raise PipelineError(f"{model_folder}: the tokenizer has more entries than the model's vocab_size")
    notes = generation_notes(config, decoding) if decoding else []
    with new_folder(output) as folder:
        theirs.generation_config = transformers.GenerationConfig(**generation_settings(config, decoding))
        theirs.save_pretrained(folder)
        write_tokenizer(folder, tokenizer, config, limits)
        tokens = {"bos": str(tokenizer.id_to_token(config.bos_id)), "eos": str(tokenizer.id_to_token(config.eos_id))}
        text = card(model, family.model_class, family.auto_class, limits, _training(model_folder), tokens, notes)
        (folder / "README.md").write_text(text, encoding="utf-8")
        rows = _rows(folder, [encoding.ids for encoding in tokenizer.encode_batch(list(TEXTS))], config)
        loaded = getattr(transformers, family.auto_class).from_pretrained(folder)
        difference = require_parity(model, loaded, rows, f"{model_folder} as {family.model_class}")
    print(f"{output}: {family.model_class}, logits within {difference:.1e} of those of {model_folder}")
    for note in notes:
        print(f"note: {note}")


def _training(folder: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads((folder / "training.json").read_text())
    except (OSError, ValueError):
        return {}
    return facts


def _rows(folder: Path, expected: list[list[int]], config: TransformerConfig) -> list[list[int]]:
    """The texts as the written tokenizer, loaded anew, encodes them. Raises PipelineError where it does otherwise."""
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(folder, model_max_length=10**9)  # nothing is cut here
    batch = loaded(list(TEXTS), padding=True)
    rows = [
        [token for token, real in zip(ids, mask, strict=True) if real]
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    if rows != expected or loaded.pad_token_id != config.pad_id or loaded.eos_token_id != config.eos_id:
        raise PipelineError(f"the tokenizer loads as a {type(loaded).__name__} that splits texts otherwise than ours")
    return rows


def import_model(source: str | Path, output: Path) -> None:
    """Writes a model folder at `output` from a published checkpoint: a local folder, or a name on the Hub.

    pad_id, bos_id (what a decoder reads first) and eos_id come from its configuration, or else from its tokenizer. Our
    decoders read source, <bos_id>, target. Raises PipelineError, and leaves nothing, where the checkpoint uses what our
    parts do not compute, has weights in pickles only or no tokenizer.json, or gives other logits on the same texts.
    """
    published = open_published(source)
    model = from_hugging_face(published.model)
    model.config = published.with_ids(model.config)
    rows = [encoding.ids for encoding in published.tokenizer.encode_batch(list(TEXTS))]
    tokenizer_json, notes = published.tokenizer_json, published.notes()
    if model.config.pad_id == model.config.eos_id:  # training could not tell the end of a text from padding
        model, tokenizer_json = with_padding(model, tokenizer_json)
        notes.append(f"it had no token for padding: <pad>, {model.config.pad_id}, is new")
    with new_folder(output) as folder:
        tokenizer_file = folder / "published.json"
        tokenizer_file.write_text(tokenizer_json, encoding="utf-8")
        save_model(folder, model, tokenizer_file, limits={})
        tokenizer_file.unlink()
        loaded = load_model(folder)
        assert not isinstance(loaded, SpanReader | Classifier)
        difference = require_parity(loaded, published.model, rows, f"{source} in our parts")
        digest = sha256(folder / "model.safetensors")
    name = type(published.model).__name__
    print(f"{output}: {name}, logits within {difference:.1e} of those of {source}")
    for note in notes:
        print(f"note: {note}")
    print(
        f"to go on from it, in params.yaml: model: {{preset: null, start_from: {{path: {output}, sha256: {digest}}}}}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: 0 done, 1 a wrong input with one line on stderr, 2 wrong usage."""
    parser = argparse.ArgumentParser(
        prog="python -m lightning_modules.interop.huggingface",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="export|import")
    exported = commands.add_parser("export", help="write a model folder in Hugging Face's format")
    exported.add_argument("model_folder", type=Path, metavar="MODEL_FOLDER", help="a folder that training wrote")
    imported = commands.add_parser("import", help="make a model folder of a published checkpoint")
    imported.add_argument("source", metavar="SOURCE", help="its folder, or its name on the Hub (owner/name)")
    for command in (exported, imported):
        command.add_argument("output", type=Path, metavar="OUTPUT", help="the folder to write; must not be there yet")
    chosen = parser.parse_args(arguments)

    def work() -> None:
        _quieten()
        if chosen.command == "export":
            export(chosen.model_folder, chosen.output)
        else:
            import_model(chosen.source, chosen.output)

    return exit_status(work)


def _quieten() -> None:
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # or else it tells of every try to reach the Hub


if __name__ == "__main__":
    sys.exit(main())
