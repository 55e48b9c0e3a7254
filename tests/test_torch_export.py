"""`torch.export` of all three architectures: the program gives the model's numbers at shapes it was not traced at."""

from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn
from torch.export import Dim

LEARNED: dict[str, Any] = {"positions": "learned", "embedding_norm": True}
RELATIVE: dict[str, Any] = {"positions": "relative", "scale_attention": False}
ALIBI: dict[str, Any] = {"positions": "alibi", "activation": "geglu"}
MODERN: dict[str, Any] = {
    "positions": "rotary",
    "key_value_heads": 2,
    "qk_norm": True,
    "norm_type": "rms",
    "activation": "swiglu",
    "window": 4,
}


class Scores(nn.Module):
    """A forward pass and the logits, which are apart in training."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.model.logits(self.model(*inputs))


def inputs(architecture: str, rows: int, source: int, target: int) -> tuple[Tensor, ...]:
    """Ids and a mask in which the first row has padding where its architecture wants it."""
    given = torch.Generator().manual_seed(rows + source)
    source_BS = torch.randint(5, tiny.VOCAB_SIZE, (rows, source), generator=given)
    real_BS = torch.ones(rows, source, dtype=torch.bool)
    real_BS[0, slice(0, source // 3) if architecture == "decoder" else slice(source - source // 3, None)] = False
    if architecture == "encoder":
        return source_BS, real_BS
    return source_BS, torch.randint(5, tiny.VOCAB_SIZE, (rows, target), generator=given), real_BS


@pytest.mark.parametrize(
    ("architecture", "scheme"),
    [
        ("encoder", LEARNED),
        ("encoder", MODERN),
        ("decoder", LEARNED),
        ("decoder", ALIBI),
        ("decoder", RELATIVE),
        ("decoder", MODERN),
        ("encoder_decoder", {"positions": "sinusoidal", "norm": "post"}),
        ("encoder_decoder", ALIBI),
        ("encoder_decoder", RELATIVE),
        ("encoder_decoder", MODERN),
    ],
    ids=lambda value: value if isinstance(value, str) else value["positions"],
)
def test_an_exported_program_computes_what_the_model_does_at_other_shapes(
    architecture: str, scheme: dict[str, Any]
) -> None:
    layers = {"encoder_layers": 1, "decoder_layers": 1}
    scores = Scores(tiny.model(architecture=architecture, **layers, **scheme))
    # Where learned positions end is part of the program: source and target of a decoder share them.
    most = 64 if scheme["positions"] == "learned" else None
    batch, source, target = Dim("batch"), Dim("source", max=most), Dim("target", max=most)
    ids, words = {0: batch, 1: source}, {0: batch, 1: target}
    shapes = (ids, ids) if architecture == "encoder" else (ids, words, ids)
    program = torch.export.export(scores, inputs(architecture, 3, 7, 5), dynamic_shapes=(shapes,)).module()
    for rows, source_length, target_length in ((1, 1, 1), (2, 9, 4), (5, 40, 23)):
        given = inputs(architecture, rows, source_length, target_length)
        with torch.inference_mode():
            torch.testing.assert_close(program(*given), scores(*given), rtol=1e-5, atol=1e-5)
