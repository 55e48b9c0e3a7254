"""What decoding is told: impossible values and fields that contradict are refused by name."""

from typing import Any

import pytest

from lightning_modules.decoding import Decoding


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"max_tokens": 0}, "max_tokens: 0 is not 1 or more"),
        ({"beams": 0}, "beams: "),
        ({"beams": 4, "answers": 5}, "answers: "),
        ({"answers": 2}, "answers: "),
        ({"sample": True, "beams": 2}, "sample: "),
        ({"top_p": 0.9}, "sample: "),
        ({"sample": True, "top_p": 0.0}, "top_p: "),
        ({"sample": True, "top_p": 1.1}, "top_p: "),
        ({"sample": True, "min_p": -0.1}, "min_p: "),
        ({"sample": True, "temperature": 0.0}, "temperature: "),
        ({"sample": True, "top_k": -1}, "top_k: "),
        ({"repetition_penalty": 0.0}, "repetition_penalty: "),
        ({"no_repeat_ngram": -1}, "no_repeat_ngram: "),
        ({"stop": "soon"}, "stop: 'soon' is none of exact, likely, full"),
    ],
)
def test_the_field_is_named(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named}"):
        Decoding(**{"max_tokens": 10} | changes)
