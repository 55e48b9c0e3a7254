"""The configuration: defaults that the paper chose, and an error that names the field for every impossible one."""

from dataclasses import FrozenInstanceError, asdict
from typing import Any

import pytest
from tiny import config

from lightning_modules.transformer.config import TransformerConfig

IMPOSSIBLE: list[tuple[str, dict[str, Any]]] = [
    ("encoder_layers", {"encoder_layers": 0}),
    ("decoder_layers", {"decoder_layers": 0}),
    ("encoder_layers", {"architecture": "encoder", "encoder_layers": 0}),
    ("decoder_layers", {"architecture": "decoder", "decoder_layers": 0}),
    ("heads", {"heads": 5}),
    ("heads", {"heads": 0}),
    ("key_value_heads", {"key_value_heads": 3}),
    ("key_value_heads", {"key_value_heads": 8}),
    ("key_value_heads", {"key_value_heads": 0}),
    ("d_model", {"d_model": 33, "heads": 3}),
    ("d_model", {"d_model": 0}),
    ("head_width", {"positions": "rotary", "head_width": 5}),
    ("head_width", {"positions": "rotary", "d_model": 36}),
    ("head_width", {"head_width": 0}),
    ("tied_output", {"embeddings": "characters"}),
    ("token_types", {"token_types": 2}),
    ("token_types", {"token_types": 2, "architecture": "decoder"}),
    ("bidirectional_prefix", {"bidirectional_prefix": True}),
    ("bidirectional_prefix", {"bidirectional_prefix": True, "architecture": "encoder"}),
    ("window", {"window": 0}),
    ("relative_buckets", {"relative_buckets": 2}),
    ("relative_buckets", {"relative_buckets": 7}),
    ("relative_distance", {"relative_distance": 16}),
    ("rotary_scaling", {"rotary_scaling": 0.0}),
    ("dropout", {"dropout": 1.0}),
    ("attention_dropout", {"attention_dropout": -0.1}),
    ("vocab_size", {"vocab_size": 0}),
    ("architecture", {"architecture": "encoder-decoder"}),
    ("positions", {"positions": "sinusoid"}),
    ("embeddings", {"embeddings": "words"}),
    ("activation", {"activation": "swish"}),
    ("norm", {"norm": "Pre"}),
    ("norm_type", {"norm_type": "RMS"}),
    ("initialization", {"initialization": "he"}),
]
POSSIBLE: list[dict[str, Any]] = [
    {"architecture": "encoder", "decoder_layers": 0},
    {"architecture": "decoder", "encoder_layers": 0},
    {"heads": 5, "head_width": 8},
    {"key_value_heads": 1},
    {"d_model": 33, "heads": 3, "positions": "rotary", "head_width": 8},
    {"d_model": 33, "heads": 3, "positions": "none"},
    {"embeddings": "characters", "tied_output": False},
    {"architecture": "encoder", "token_types": 2},
    {"architecture": "decoder", "bidirectional_prefix": True},
    {"window": 1},
    {"relative_buckets": 4, "relative_distance": 3},
]


@pytest.mark.parametrize(("field", "changes"), IMPOSSIBLE)
def test_what_cannot_be_is_refused_with_the_name_of_the_field_first(field: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"^{field}: "):
        config(**changes)


@pytest.mark.parametrize("changes", POSSIBLE)
def test_what_is_next_to_the_impossible_is_not(changes: dict[str, Any]) -> None:
    made = config(**changes)
    assert {name: asdict(made)[name] for name in changes} == changes


def test_an_unknown_field_and_a_missing_one_are_errors() -> None:
    with pytest.raises(TypeError, match="layers_of_the_encoder"):
        config(layers_of_the_encoder=2)
    with pytest.raises(TypeError, match="architecture"):
        TransformerConfig(**{name: value for name, value in asdict(config()).items() if name != "architecture"})


def test_the_widths_and_groups_that_others_decide() -> None:
    assert (config().width_of_heads, config(head_width=5).width_of_heads) == (8, 5)
    assert (config().groups, config(key_value_heads=2).groups) == (4, 2)


def test_a_configuration_survives_plain_data_and_does_not_change() -> None:
    made = config(key_value_heads=2, positions="rotary", window=9)
    assert TransformerConfig(**asdict(made)) == made
    with pytest.raises(FrozenInstanceError):
        made.heads = 8  # type: ignore[misc]
