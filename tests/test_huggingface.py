"""Our models in Hugging Face's classes: the same logits and gradients, the same bits back, refusals of the rest."""

from typing import Any

import pytest
import tiny
import torch
from torch.nn import functional
from two_hands import BERT, GPT2, LLAMA, OURS, RELATIVE, both, require_equal_logits

from lightning_modules.errors import PipelineError
from lightning_modules.interop.hf_mapping import family_of
from lightning_modules.interop.hf_weights import to_theirs
from lightning_modules.interop.huggingface import from_hugging_face, to_hugging_face
from lightning_modules.transformer.heads import SpanReader
from lightning_modules.transformer.model import make_model
from lightning_modules.transformer.presets import preset

PRESETS = ("vaswani-base", "bert-base", "gpt2", "t5-small", "bart-base", "llama-style", "modern")
SMALL_PRESETS = ("small-encoder-decoder", "small-decoder")  # small-encoder has its norms before, BERT after


@pytest.mark.parametrize("name", OURS)
def test_our_model_in_their_class_gives_the_same_logits(name: str) -> None:
    model_class, changes = OURS[name]
    ours = tiny.model(**changes)
    theirs = to_hugging_face(ours)
    assert type(theirs).__name__ == model_class
    assert not theirs.training
    assert theirs.dtype == torch.float32
    require_equal_logits(ours, theirs, [1], [1])
    require_equal_logits(ours, theirs, [9, 4, 1], [5, 8, 2])
    require_equal_logits(ours, theirs, [3, 60], [64, 50])


@pytest.mark.parametrize("name", [name for name in OURS if name != "pegasus, untied"])  # theirs unties more than ours
def test_gradients_are_the_same_for_every_weight(name: str) -> None:
    ours = tiny.model(**OURS[name][1])
    theirs = to_hugging_face(ours)
    for logits, expected in both(ours, theirs, [9, 4, 1], [5, 8, 2])[-1:]:
        wanted = torch.arange(5, 5 + len(logits))
        functional.cross_entropy(logits, wanted).backward()
        functional.cross_entropy(expected, wanted).backward()
    gradients = {n: p.grad if p.grad is not None else torch.zeros_like(p) for n, p in ours.named_parameters()}
    moved = to_theirs(family_of(ours.config).links(ours.config), gradients, theirs.state_dict())
    compared = 0
    for parameter_name, parameter in theirs.named_parameters():
        learned = ours.config.token_types or "token_type" not in parameter_name
        if learned and parameter.grad is not None and parameter.grad.any():
            torch.testing.assert_close(moved[parameter_name], parameter.grad, atol=2e-5, rtol=1e-3)
            compared += 1
    assert compared > 15


@pytest.mark.parametrize("name", OURS)
def test_ours_there_and_back_is_the_same_bit_for_bit(name: str) -> None:
    ours = tiny.model(**OURS[name][1], dropout=0.25, attention_dropout=0.125)
    back = from_hugging_face(to_hugging_face(ours))
    before, after = ours.state_dict(), back.state_dict()
    for tensor_name, tensor in before.items():
        assert torch.equal(tensor, after[tensor_name]), tensor_name
    added = [after[tensor_name] for tensor_name in after.keys() - before.keys()]
    assert not any(tensor.any() for tensor in added)  # at most a bias of zero that BERT always has
    for field in ("pad_id", "bos_id", "eos_id", "norm_eps", "head_width", "key_value_heads", "max_length"):
        assert getattr(back.config, field) == getattr(ours.config, field), field
    if not name.startswith(("llama", "qwen3")):  # they have no dropout but the attention's
        assert back.config.dropout == 0.25
    if not name.startswith("t5"):  # which has one for all
        assert back.config.attention_dropout == 0.125


@pytest.mark.parametrize("name", [*PRESETS, *SMALL_PRESETS])
def test_presets_have_a_counterpart(name: str) -> None:
    layers = {} if name in SMALL_PRESETS else {"encoder_layers": 1, "decoder_layers": 1}
    ours = make_model(preset(name, vocab_size=600, **layers)).eval()
    require_equal_logits(ours, to_hugging_face(ours), [9, 4], [5, 8])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (BERT | {"norm": "pre"}, "norm pre"),
        ({"positions": "alibi"}, "positions alibi"),
        ({"positions": "none"}, "positions none"),
        ({"positions": "rotary"}, "positions rotary"),
        ({"window": 8}, "window 8"),
        ({"embeddings": "characters", "tied_output": False}, "embeddings characters"),
        (GPT2 | {"bidirectional_prefix": True}, "bidirectional_prefix true"),
        ({"norm_eps": 1e-6}, "norm_eps 1e-06"),
        ({"activation": "geglu"}, "activation geglu"),
        ({"qk_norm": True}, "qk_norm true"),
        (LLAMA | {"activation": "geglu_tanh"}, "activation geglu_tanh"),
        (BERT | {"output_transform": False}, "output_transform false"),
        (BERT | {"activation": "relu"}, "activation relu"),
        (RELATIVE | {"scale_logits": False}, "tied_output|scale_logits"),
        (LLAMA | {"d_model": 30, "head_width": 8}, "hidden size"),
    ],
)
def test_what_no_family_computes_is_refused_in_one_line_that_names_the_field(
    changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(PipelineError, match=named) as refusal:
        to_hugging_face(tiny.model(**changes))
    assert "\n" not in str(refusal.value)


def test_a_reader_of_spans_is_refused() -> None:
    with pytest.raises(PipelineError, match="reads_spans"):
        to_hugging_face(SpanReader(tiny.model(**BERT)))
