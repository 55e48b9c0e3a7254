"""The arithmetic of a step against real steps: torch's own count of FLOPs, and the tensors that autograd keeps."""

import warnings
from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lightning_modules.batching import Batch
from lightning_modules.flops import (
    Shape,
    activation_bytes,
    batch_bytes,
    logit_bytes,
    optimizer_flops,
    parameters,
    recomputed_flops,
    state_bytes,
    step_flops,
)
from lightning_modules.loss import batch_loss
from lightning_modules.model_folder import Model
from lightning_modules.optim import OPTIMIZERS
from lightning_modules.transformer.heads import SpanReader
from lightning_modules.transformer.model import count_parameters
from lightning_modules.transformer.presets import PRESETS, preset
from lightning_modules.transformer.stack import recompute_activations

ARCHITECTURES = ("encoder", "decoder", "encoder_decoder")
OPTIONS: list[dict[str, Any]] = [
    {},
    {"activation": "swiglu", "norm_type": "rms", "positions": "rotary", "key_value_heads": 2, "bias": False},
    {"qk_norm": True, "key_value_heads": 1, "activation": "relu2"},
    {"positions": "relative", "activation": "geglu"},
    {"positions": "alibi", "head_width": 8, "tied_output": False},
    {"dropout": 0.1, "norm": "post", "activation": "gelu", "window": 9},
    {"attention_dropout": 0.1},
    {"positions": "learned", "embedding_norm": True, "output_transform": True, "output_bias": True},
    {"embeddings": "characters", "tied_output": False, "token_characters": 7},
]
everything = pytest.mark.parametrize("options", OPTIONS, ids=lambda options: ",".join(options) or "plain")
every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


def made(architecture: str, options: dict[str, Any]) -> Any:
    return tiny.model(architecture=architecture, d_model=48, heads=4, d_ff=160, **options).train()


def batch_of(model: Model, rows: int = 4, source: int = 30, target: int = 22) -> tuple[Batch, Shape]:
    """Distinct tokens, as the bound on characters assumes; an encoder predicts every third."""
    ids = 70 + torch.arange(rows * (source + target))
    source_BS, target_BT = ids[: rows * source].view(rows, source), ids[rows * source :].view(rows, target)
    if model.config.architecture == "encoder":
        target_BT = source_BS.masked_fill(torch.arange(source) % 3 > 0, 0)
        target = 0
    return Batch(source_BS, target_BT, None, None, 0, 0), Shape(rows, source, target, int((target_BT != 0).sum()))


@everything
@every_architecture
def test_flops_are_those_that_torch_counts_in_a_real_step(architecture: str, options: dict[str, Any]) -> None:
    model = made(architecture, options)
    batch, shape = batch_of(model)
    # As plain products: of the fused kernel for CPUs torch counts nothing.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        loss, predicted = batch_loss(model, batch, label_smoothing=0.0)
        loss.backward()
    assert int(predicted) == shape.predicted
    # Shifted to the right, all rows of a target begin with <s>: fewer distinct tokens than assumed to be composed.
    most = 1.02 if "embeddings" in options and architecture != "encoder" else 1.0
    assert 1.0 <= step_flops(model.config, shape) / counter.get_total_flops() <= most


def test_a_decoder_without_a_source_and_a_model_that_points_are_counted() -> None:
    decoder = made("decoder", {})
    target_BT = torch.arange(80, 144).view(4, 16)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        batch_loss(decoder, Batch(target_BT[:, :0], target_BT, None, None, 0, 0), 0.0)[0].backward()
    assert step_flops(decoder.config, Shape(4, 0, 16, 64)) == counter.get_total_flops()

    reader = SpanReader(made("encoder", {}))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        batch_loss(reader, Batch(target_BT, torch.tensor([[0, 1]] * 4), None, None, 0, 0), 0.0)[0].backward()
    # The two columns that point are left out: 2 of the hundreds that a token meets.
    assert step_flops(reader.config, Shape(4, 16, 2, 0)) == pytest.approx(counter.get_total_flops(), rel=0.01)


@every_architecture
def test_what_is_computed_again_is_counted_and_what_is_kept_is_little(architecture: str) -> None:
    kept, estimated = [], []
    for layers in (2, 5):
        model = made(architecture, {"encoder_layers": layers, "decoder_layers": layers})
        recompute_activations(model, True)
        batch, shape = batch_of(model)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            batch_loss(model, batch, label_smoothing=0.0)[0].backward()
        flops = step_flops(model.config, shape) + recomputed_flops(model.config, shape)
        assert flops == pytest.approx(counter.get_total_flops(), rel=0.02)
        kept.append(kept_bytes(model, batch, half=False))
        estimated.append(activation_bytes(model.config, shape, half=False, gpu=False, recompute=True))
    assert estimated[1] - estimated[0] == kept[1] - kept[0]


def kept_bytes(model: Model, batch: Batch, half: bool) -> int:
    """Bytes of all tensors that autograd keeps for the backward pass, each storage once, parameters aside."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with (
        warnings.catch_warnings(),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=half),
    ):
        warnings.simplefilter("ignore")  # normalisations of heads have no fused kernel for bf16
        loss, _ = batch_loss(model, batch, label_smoothing=0.0)
    assert loss.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


@everything
@every_architecture
@pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
def test_activations_are_about_what_autograd_keeps(
    architecture: str, options: dict[str, Any], half: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)  # would fill up rows, here beyond measure
    model = made(architecture, options)
    batch, shape = batch_of(model)
    slopes = 4 * model.config.d_model * (shape.predicted + model.config.vocab_size)  # in place of the logits
    counts = parameters(model.config) | {"head": 0}  # a copy of it is not kept …
    if model.config.embeddings == "tokens":
        counts["embeddings"] = 0  # … and none of these is made
    copies = state_bytes(counts, "adamw", half, 1) - state_bytes(counts, "adamw", False, 1)
    estimated = activation_bytes(model.config, shape, half, gpu=False) + slopes + copies
    assert estimated == pytest.approx(kept_bytes(model, batch, half), rel=0.15)


def test_a_step_in_memory_adds_up() -> None:
    config, shape = tiny.config(), Shape(4, 30, 22, 88)
    assert logit_bytes(config, shape, False, False) == 4 * (88 * tiny.VOCAB_SIZE + 32 * (88 + tiny.VOCAB_SIZE))
    assert logit_bytes(config, shape, True, False) > logit_bytes(config, shape, False, False)
    both = activation_bytes(config, shape, False, False) + logit_bytes(config, shape, False, False)
    assert batch_bytes(config, shape, half=False, gpu=False) == both
    counts = {"embeddings": 6, "encoder": 3, "decoder": 1, "head": 0}
    assert state_bytes(counts, "adamw", half=False, processes=1) == 160
    assert state_bytes(counts, "adamw", True, 2) > state_bytes(counts, "adamw", True, 1) > 160


@every_architecture
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimisers_keep_what_is_said_and_muon_multiplies_so_much(name: str, architecture: str) -> None:
    model = made(architecture, {"activation": "swiglu", "key_value_heads": 2})
    optimizer = OPTIMIZERS[name](model, 1e-3, 0.01)
    batch_loss(model, batch_of(model)[0], 0.0)[0].backward()
    with FlopCounterMode(display=False) as counter:
        optimizer.step()
    outer_products = 2 * count_parameters(model) if name == "adafactor" else 0  # at most; not worth counting
    assert 0 <= counter.get_total_flops() - optimizer_flops(model.config, name) <= outer_products
    kept = sum(x.nbytes for state in optimizer.state.values() for x in state.values() if isinstance(x, torch.Tensor))
    held = sum(2 * parameter.nbytes for parameter in model.parameters())  # weights, gradients
    assert state_bytes(parameters(model.config), name, False, 1) == pytest.approx(kept + held, rel=0.1)


def test_a_gpu_keeps_no_dropped_scores_but_the_learned_biases() -> None:
    shape = Shape(1, 512, 0, 0)
    plain = tiny.config(architecture="encoder")
    dropping, relative = (replace(plain, attention_dropout=0.1), replace(plain, positions="relative"))
    matrix = 2 * 4 * 4 * 512 * 512  # layers, heads, bytes
    assert activation_bytes(dropping, shape, False, gpu=True) == activation_bytes(plain, shape, False, gpu=True)
    assert activation_bytes(dropping, shape, False, gpu=False) - activation_bytes(plain, shape, False, False) > matrix
    assert activation_bytes(relative, shape, False, True) - activation_bytes(plain, shape, False, True) == matrix


@everything
@every_architecture
def test_parameters_by_part_add_up_to_the_models(architecture: str, options: dict[str, Any]) -> None:
    model = made(architecture, options)
    counts = parameters(model.config)
    assert sum(counts.values()) == count_parameters(model)
    assert (counts["encoder"] > 0, counts["decoder"] > 0) == (architecture != "decoder", architecture != "encoder")
    assert counts["embeddings"] >= sum(parameter.numel() for parameter in model.embedding.parameters())


def test_positions_and_segments_count_as_embeddings() -> None:
    config = tiny.config(architecture="encoder", positions="learned", token_types=3)
    assert parameters(config)["embeddings"] == (tiny.VOCAB_SIZE + config.max_length + 3) * config.d_model


@pytest.mark.parametrize("name", PRESETS)
def test_a_long_step_costs_about_six_flops_a_matrix_entry_and_token(name: str) -> None:
    config = preset(name)
    # Kaplan's 6·N for the tokens of a stack: embeddings aside, with a few tokens attention hardly counts.
    rows, length = 64, 8
    counts = parameters(config)
    shape = Shape(
        rows, 0 if config.architecture == "decoder" else length, 0 if config.architecture == "encoder" else length, 0
    )
    tokens = {"encoder": length, "decoder": length}
    expected = 6 * rows * sum(tokens[part] * counts[part] for part in tokens)
    assert step_flops(config, shape) == pytest.approx(expected, rel=0.02)


def test_a_billion_parameters_are_counted_without_their_memory() -> None:
    config = preset("modern", d_model=2048, heads=16, d_ff=8192, decoder_layers=24)
    before = torch.get_rng_state()
    assert sum(parameters(config).values()) > 1e9
    assert torch.equal(torch.get_rng_state(), before)


shapes = st.builds(Shape, st.integers(1, 64), st.integers(1, 300), st.integers(1, 300), st.integers(0, 5000))


@settings(max_examples=50)
@given(shapes, st.sampled_from(ARCHITECTURES), st.integers(2, 5))
def test_twice_the_rows_cost_twice_the_flops_and_no_more_bytes(shape: Shape, architecture: str, times: int) -> None:
    config = tiny.config(architecture=architecture)
    more = replace(shape, rows=times * shape.rows, predicted=times * shape.predicted)
    assert step_flops(config, more) == times * step_flops(config, shape)
    assert activation_bytes(config, more, True, True) == times * activation_bytes(config, shape, True, True)
    assert batch_bytes(config, more, True, True) <= times * batch_bytes(config, shape, True, True)


@pytest.mark.parametrize("gpu", [False, True])
def test_however_many_predictions_one_piece_of_their_scores_is_there(gpu: bool) -> None:
    config = tiny.config(vocab_size=50_000)
    many, more = (logit_bytes(config, Shape(1, 1, 1, count), False, gpu) for count in (10_000, 100_000))
    assert more - many == 4 * config.d_model * 90_000


@settings(max_examples=50)
@given(shapes, st.sampled_from(ARCHITECTURES))
def test_attention_grows_with_the_square_of_the_length(shape: Shape, architecture: str) -> None:
    config = tiny.config(architecture=architecture)
    longer = replace(shape, source=2 * shape.source, target=2 * shape.target, predicted=2 * shape.predicted)
    assert 2 * step_flops(config, shape) < step_flops(config, longer) < 4 * step_flops(config, shape)
