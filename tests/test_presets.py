"""Shapes by name: the published numbers of parameters, an even first guess, and every field within reach."""

import math
from typing import Any

import pytest
import torch
from tiny import VOCAB_SIZE
from torch import nn
from torch.nn import functional

from lightning_modules.transformer.model import count_parameters, make_model
from lightning_modules.transformer.presets import PRESETS, preset

# Parameters, each tied one once, and by how much the count may differ (0: exact).
PUBLISHED: dict[str, tuple[float, float]] = {
    "vaswani-base": (65e6, 0.03),  # arXiv:1706.03762, table 3; "about 37000 tokens" in section 5.1
    "vaswani-big": (213e6, 0.01),
    "bert-base": (109_514_298, 0),  # bert-base-uncased with its masked-LM head; arXiv:1810.04805, section 3: 110 M
    "gpt2": (124_439_808, 0),  # openai-community/gpt2; "124M" in the authors' repository
    "t5-small": (60_506_624, 0),  # google-t5/t5-small; arXiv:1910.10683, section 3.7: "about 60 million"
    # facebook/bart-base has 139,420,416 (arXiv:1910.13461; "140M" in the authors' repository): its tables of positions
    # have two rows more than it ever reads, in either stack.
    "bart-base": (139_420_416 - 2 * 2 * 768, 0),
    "llama-style": (134_515_008, 0),  # HuggingFaceTB/SmolLM-135M
}
# The first loss over ln V. Logits of unit variance, as the first weights of the 2017 paper and T5 give them, cost half
# a nat: measured 1.047 (base), 1.048 (big), 1.051 (T5). With deviation 0.02 it is 1.02 at most.
FIRST_LOSS = {"vaswani-base": 1.055, "vaswani-big": 1.055, "t5-small": 1.055}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_has_the_published_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        count = count_parameters(make_model(preset(name)))
    published, share = PUBLISHED[name]
    assert abs(count - published) <= share * published


def test_the_base_model_is_counted_as_the_paper_builds_it() -> None:
    """Shared embeddings once, biases, no learned positions."""
    with torch.device("meta"):
        base = make_model(preset("vaswani-base"))
    attention, norm = 4 * (512 * 512 + 512), 2 * 512
    feed_forward = 512 * 2048 + 2048 + 2048 * 512 + 512
    encoder, decoder = attention + feed_forward + 2 * norm, 2 * attention + feed_forward + 3 * norm
    assert count_parameters(base) == 37_000 * 512 + 6 * (encoder + decoder)


@pytest.mark.parametrize("name", PRESETS)
def test_a_fresh_model_guesses_about_evenly(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A badly scaled one costs several nats. The loss is the mean over all targets: no luck of the draw is in it."""
    # What torch draws for a linear layer is to be drawn over: where it is not, there is no number.
    monkeypatch.setattr(nn.Linear, "reset_parameters", lambda layer: layer.weight.data.fill_(float("nan")))
    torch.manual_seed(3)
    config = preset(name)
    fresh = make_model(config).eval()
    source_BS, target_BT = torch.randint(5, config.vocab_size, (2, 2, 32))
    with torch.no_grad():
        if config.architecture == "encoder":
            hidden_BLD = fresh(source_BS)
        elif config.architecture == "decoder":
            hidden_BLD = fresh(source_BS[:, :0], target_BT)
        else:
            hidden_BLD = fresh(source_BS, target_BT)
        logits_BLV = fresh.logits(hidden_BLD)
    loss = (logits_BLV.logsumexp(-1) - logits_BLV.mean(-1)).mean().item()
    assert 1.0 < loss / math.log(config.vocab_size) < FIRST_LOSS.get(name, 1.025)


@pytest.mark.parametrize("name", PRESETS)
def test_any_field_of_a_preset_can_be_another_and_the_rest_stays(name: str) -> None:
    changed = preset(name, dropout=0.37, positions="alibi", window=9)
    assert (changed.dropout, changed.positions, changed.window) == (0.37, "alibi", 9)
    assert PRESETS[name].get("positions") != "alibi"
    assert changed.d_model == preset(name).d_model


SMALLER: dict[str, Any] = {"d_model": 32, "heads": 4, "d_ff": 48, "vocab_size": VOCAB_SIZE, "key_value_heads": 2}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_made_small_takes_a_step(name: str) -> None:
    torch.manual_seed(0)
    config = preset(name, **SMALLER)
    model = make_model(config).train()
    ids = torch.randint(5, VOCAB_SIZE, (2, 7))
    hidden = model(ids) if config.architecture == "encoder" else model(ids, ids)
    functional.cross_entropy(model.logits(hidden).flatten(0, 1), ids.flatten()).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name


def test_unknown_names_fields_and_contradictions_are_errors() -> None:
    with pytest.raises(KeyError, match="gpt5"):
        preset("gpt5")
    with pytest.raises(TypeError, match="layers"):
        preset("gpt2", layers=3)
    with pytest.raises(ValueError, match=r"^heads: 7 does not divide"):
        preset("gpt2", heads=7)
