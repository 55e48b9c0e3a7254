"""A model is one graph to torch.compile: where it falls apart, a GPU waits for Python between the pieces.

Traced, not compiled to machine code; tests/test_gpu.py does that where there is a GPU.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import VOCAB_SIZE, config, encoded, model, sentences, write_store

from lightning_modules.loss import batch_loss
from lightning_modules.objectives import CausalLM, MaskedLM, SpanCorruption
from lightning_modules.text_rows import TextRows
from lightning_modules.transformer.stack import Stack, recompute_activations

LLAMA = {"architecture": "decoder", "positions": "rotary", "activation": "swiglu", "norm_type": "rms", "bias": False}
SHAPES: dict[str, dict[str, Any]] = {
    "gpt": {"architecture": "decoder", "positions": "learned", "activation": "gelu_tanh"},
    "llama": LLAMA | {"key_value_heads": 2, "qk_norm": True},
    "alibi": {"architecture": "decoder", "positions": "alibi", "window": 10},
    "bert": {"architecture": "encoder", "positions": "learned", "output_transform": True},
    "t5": {"positions": "relative", "activation": "geglu", "dropout": 0.1},
    "paper": {"norm": "post"},
}


@pytest.mark.parametrize(
    ("shape", "packing"), [*((shape, "best_fit") for shape in SHAPES), ("llama", "joined"), ("paper", "joined")]
)
def test_training_is_one_graph(tmp_path: Path, shape: str, packing: str) -> None:
    objectives = {
        "decoder": CausalLM(),
        "encoder": MaskedLM(0.15, 4, 0, 70, VOCAB_SIZE, None),
        "encoder_decoder": SpanCorruption(0.15, 3.0, 5, 64, 2),
    }
    made = config(**SHAPES[shape])
    store = write_store(tmp_path / "data", encoded(sentences()[:100]))
    batches = TextRows(store, made, objectives[made.architecture], 64, 4, 2, 1, packing)
    plain, compiled, graphs = model(1, **SHAPES[shape]).train(), model(1, **SHAPES[shape]).train(), []

    def trace(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    recompute_activations(compiled, shape == "gpt")
    compiled.compile(backend=trace, fullgraph=True)
    for number in range(2):
        losses = []
        for one in (plain, compiled):
            torch.manual_seed(number)
            nats, _ = batch_loss(one, batches.training_batch(number, 0, 1), 0.1)
            nats.backward()
            losses.append(nats.detach())
        if not made.dropout:  # which is drawn otherwise
            torch.testing.assert_close(*losses)
    assert len(graphs) == 1
    assert all(parameter.grad is not None for parameter in compiled.parameters())


@pytest.mark.parametrize("shape", ["gpt", "llama", "alibi", "bert"])
def test_so_is_attention_that_leaves_out_blocks(shape: str) -> None:
    made = model(1, **SHAPES[shape])
    for part in made.modules():
        if isinstance(part, Stack):
            part.packs_with = "flex"
    ids_BL = torch.randint(70, VOCAB_SIZE, (2, 64))
    document_BL = torch.arange(64).div(20, rounding_mode="floor").expand(2, -1)
    given = (
        (ids_BL, None, document_BL)
        if made.config.architecture == "encoder"
        else (ids_BL[:, :0], ids_BL, None, document_BL)
    )
    with torch.no_grad():
        expected = made(*given)
        torch._dynamo.reset()
        made.compile(backend="eager", fullgraph=True)
        torch.testing.assert_close(made(*given), expected)
