"""The README.md of an exported model: what it is, how large, where its limits are, how to load it."""

from collections.abc import Sequence
from typing import Any

from lightning_modules.transformer.config import TransformerConfig
from lightning_modules.transformer.model import Decoder, Encoder, EncoderDecoder, count_parameters

_USES = {
    "encoder": """scores = model(**tokenizer(["A text with one <mask> in it."], return_tensors="pt")).logits""",
    "decoder": """inputs = tokenizer(["A text"], return_tensors="pt", padding=True)
ids = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
print(tokenizer.batch_decode(ids, skip_special_tokens=True))""",
    "encoder_decoder": """inputs = tokenizer(["A text"], return_tensors="pt", padding=True, truncation=True)
print(tokenizer.batch_decode(model.generate(**inputs), skip_special_tokens=True))""",
}
_READS = {
    (False, "encoder"): "The tokenizer ends a text with `{eos}`.",
    (False, "decoder"): "The tokenizer begins a text with `{bos}`; the model goes on from there.",
    (False, "encoder_decoder"): "The tokenizer ends a text with `{eos}`; the decoder begins with `{bos}`.",
    (True, "encoder"): "The tokenizer ends a text with `{eos}`.",
    (True, "decoder"): "The tokenizer puts `{eos} {bos}` after a text; what the model writes follows, up to `{eos}`.",
    (True, "encoder_decoder"): "The tokenizer ends a text with `{eos}`; the decoder begins with `{bos}`.",
}


def card(
    model: Encoder | Decoder | EncoderDecoder,
    class_name: str,
    auto_class: str,
    limits: dict[str, int],
    training: dict[str, Any],
    tokens: dict[str, str],
    notes: Sequence[str],
) -> str:
    """The text of README.md; `tokens` spells `bos` and `eos`, `notes` are sentences on how it writes."""
    config, fine_tuned = model.config, bool(limits)
    facts = {name.replace("_", " "): value for name, value in training.items() if isinstance(value, int | float | str)}
    special = (
        "Special tokens written in a text are read as plain text, as in training (`split_special_tokens`)."
        if fine_tuned
        else "Special tokens written in a text are read as what they are: a `<mask>` is a mask."
    )
    return f"""---
library_name: transformers
# license: yours to choose before you publish; it must suit the text that the model learned from
---

# {"Fine-tuned" if fine_tuned else "Pre-trained"} {config.architecture.replace("_", "–")} Transformer

Made by transformer-pretraining-pipeline and written in Hugging Face's standard format: `transformers` loads it without
any other code. Its logits were compared with those of the model it was made of before it was saved.

{_table(_sizes(model, class_name))}

## Use

```python
from transformers import AutoTokenizer, {auto_class}

tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
model = {auto_class}.from_pretrained("path/to/this/folder")
{_USES[config.architecture]}
```

{" ".join((_READS[fine_tuned, config.architecture].format(**tokens), special, *notes))}

## Limits

{_table(_bounds(config, limits, tokens["eos"]))}

A model knows what its text held, mistakes and prejudices included. Nothing was done to keep it from writing harmful or
untrue text.

## Training

{_table(facts) if facts else "The folder that this was made of said nothing about it."}
"""


def _sizes(model: Encoder | Decoder | EncoderDecoder, class_name: str) -> dict[str, Any]:
    config = model.config
    return {
        "class": f"`{class_name}`",
        "parameters (tied ones once)": f"{count_parameters(model):,}",
        "vocabulary": f"{config.vocab_size:,}",
        "width, heads, inner width": f"{config.d_model}, {config.heads}, {config.d_ff}",
        "layers of the encoder": config.encoder_layers if config.architecture != "decoder" else 0,
        "layers of the decoder": config.decoder_layers if config.architecture != "encoder" else 0,
    }


def _bounds(config: TransformerConfig, limits: dict[str, int], eos: str) -> dict[str, Any]:
    tokens = {name: most for name, most in limits.items() if name.endswith("_tokens")}
    bounds = {f"{name.replace('_', ' ')}, `{eos}` included": most for name, most in tokens.items()}
    return bounds | {"longest sequence in training (`max_length`)": config.max_length}


def _table(rows: dict[str, Any]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])
