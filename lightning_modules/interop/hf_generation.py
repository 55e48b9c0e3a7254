"""How an exported model writes: generation_config.json, by which `generate` searches as the model was evaluated."""

from typing import Any

from lightning_modules.search.options import Decoding
from lightning_modules.transformer.config import TransformerConfig

# Their early_stopping by our `stop`: both sides' rules are the same, as tests/test_beam_search.py holds.
_STOPS: dict[str, bool | str] = {"exact": "never", "likely": False, "full": True}


def generation_settings(config: TransformerConfig, decoding: Decoding | None) -> dict[str, Any]:
    """Fields of `transformers.GenerationConfig`; `decoding` is None of a model that was not fine-tuned."""
    settings: dict[str, Any] = {
        "bos_token_id": config.bos_id,
        "eos_token_id": config.eos_id,
        "pad_token_id": config.pad_id,
    }
    if config.architecture == "encoder_decoder":
        longest = config.max_length if decoding is None else decoding.max_tokens
        settings |= {"decoder_start_token_id": config.bos_id, "max_length": longest + 1}
    elif decoding is None:
        settings["max_length"] = config.max_length
    else:
        settings["max_new_tokens"] = decoding.max_tokens
    return settings if decoding is None else settings | _search(decoding)


def _search(decoding: Decoding) -> dict[str, Any]:
    """What chooses the tokens. Saving refuses fields of beams without beams, and of drawing where nothing is drawn."""
    settings: dict[str, Any] = {
        "num_beams": decoding.beams,
        "do_sample": decoding.sample,
        "repetition_penalty": float(decoding.repetition_penalty),  # a whole number is refused there
        "no_repeat_ngram_size": decoding.no_repeat_ngram,
    }
    if decoding.beams > 1:
        settings |= {"length_penalty": float(decoding.length_penalty), "early_stopping": _STOPS[decoding.stop]}
    if decoding.sample:
        settings |= {
            "temperature": float(decoding.temperature),
            "top_k": decoding.top_k,  # 0, too: left out, it is 50 there
            "top_p": float(decoding.top_p),
            "min_p": float(decoding.min_p),
        }
    return settings


def generation_notes(config: TransformerConfig, decoding: Decoding) -> list[str]:
    """What `generate` does otherwise than the model's own search whatever it is told, a sentence each."""
    notes = []
    if decoding.sample:
        notes.append("`generate` draws by PyTorch's seed: texts like those that were evaluated, not the same.")
    if decoding.sample and decoding.answers > 1:
        notes.append(f"It gives one draw; the texts that were evaluated are the most probable of {decoding.answers}.")
    if decoding.restrains and config.architecture == "decoder":
        notes.append("In `generate` the source counts as written where repetition is restrained; here it did not.")
    return notes
