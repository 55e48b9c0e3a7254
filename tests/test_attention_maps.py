"""Where a model looks, against the attentions that Hugging Face gives for the same weights."""

from typing import Any

import pytest
import torch
from tiny import VOCAB_SIZE, sentences, tokenizer

from lightning_modules.attention_maps import attention_map
from lightning_modules.decoding import Decoding, greedy
from lightning_modules.interop.huggingface import to_hugging_face
from lightning_modules.model_folder import new_model
from lightning_modules.text_to_text import TextToText
from lightning_modules.transformer.heads import SpanReader
from lightning_modules.transformer.presets import preset

SIZES: dict[str, Any] = {"vocab_size": VOCAB_SIZE, "d_model": 32, "heads": 4, "d_ff": 64}
MOST, TEXT = 12, " ".join(sentences()[:4])


def made(name: str, **layers: int) -> Any:
    changes = {"key_value_heads": 2} if name == "llama-style" else {}
    return new_model(preset(name, **SIZES, **layers, **changes), 0).eval()


def theirs(ours: Any) -> Any:
    network = to_hugging_face(ours)
    network.set_attn_implementation("eager")  # the others keep no weights
    return network.eval()


@pytest.mark.parametrize("name", ["gpt2", "llama-style", "vaswani-base"])
def test_what_a_writing_model_looks_at(name: str) -> None:
    crossing = name == "vaswani-base"
    ours = made(name, encoder_layers=2 if crossing else 0, decoder_layers=2)
    answering = TextToText(ours, tokenizer(), MOST, Decoding(MOST))
    found = attention_map(answering, TEXT, MOST)
    source_1S = torch.tensor([[*tokenizer().encode(TEXT).ids[: MOST - 1], ours.config.eos_id]])
    written_1T = torch.tensor([[ours.config.bos_id, *greedy(ours, source_1S, None, MOST)[0]]])
    with torch.inference_mode():
        if crossing:
            given = theirs(ours)(source_1S, decoder_input_ids=written_1T, output_attentions=True).cross_attentions
        else:
            given = theirs(ours)(torch.cat([source_1S, written_1T], dim=1), output_attentions=True).attentions
    expected_HTS = given[-1][0][:, -written_1T.shape[1] :]
    torch.testing.assert_close(torch.from_numpy(found.weights_HLS), expected_HTS, atol=1e-5, rtol=1e-4)
    assert found.weights_HLS.shape == (4, len(found.looking), len(found.seen))


def test_what_a_pointing_model_looks_at() -> None:
    encoder = made("bert-base", encoder_layers=2, decoder_layers=0)
    found = attention_map(TextToText(SpanReader(encoder).eval(), tokenizer(), MOST, Decoding(MOST)), TEXT, MOST)
    source_1S = torch.tensor([[*tokenizer().encode(TEXT).ids[: MOST - 1], encoder.config.eos_id]])
    with torch.inference_mode():
        expected_HSS = theirs(encoder)(source_1S, output_attentions=True).attentions[-1][0]
    torch.testing.assert_close(torch.from_numpy(found.weights_HLS), expected_HSS, atol=1e-5, rtol=1e-4)
    assert found.looking == found.seen
