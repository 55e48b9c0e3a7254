"""The parts of a layer, each against the arithmetic written out, finite differences, and torch's own layers."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import config
from torch import Tensor, nn

from lightning_modules.transformer.layers import ACTIVATIONS, Block, FeedForward, OutputHead, Residual, make_norm
from lightning_modules.transformer.masks import Visibility

FORMULAS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": lambda x: x.clamp(min=0),
    "gelu": lambda x: x * (1 + torch.erf(x / 2**0.5)) / 2,
    "gelu_tanh": lambda x: x * (1 + torch.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x**3))) / 2,
    "relu2": lambda x: torch.where(x > 0, x**2, 0.0),
    "silu": lambda x: x / (1 + (-x).exp()),
    "swiglu": lambda x: x / (1 + (-x).exp()),
    "geglu": lambda x: x * (1 + torch.erf(x / 2**0.5)) / 2,
    "geglu_tanh": lambda x: x * (1 + torch.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x**3))) / 2,
}
NORMS = [{"norm_type": "layer"}, {"norm_type": "layer", "bias": False}, {"norm_type": "rms"}]


def drawn(module: nn.Module, seed: int = 0) -> Any:
    """In float64, every parameter random."""
    torch.manual_seed(seed)
    for parameter in module.double().parameters():
        nn.init.normal_(parameter, std=0.5)
    return module.eval()


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def right_gradients(module: nn.Module, function: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """The gradients of input and parameters are those of finite differences."""
    parameters = tuple(module.parameters())
    assert torch.autograd.gradcheck(lambda x, *_: function(x), (x, *parameters))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", FORMULAS)
def test_feed_forward_is_the_formula_with_the_right_gradients(activation: str, bias: bool) -> None:
    assert set(FORMULAS) == set(ACTIVATIONS)
    layer = drawn(FeedForward(config(d_model=4, heads=2, d_ff=6, activation=activation, bias=bias)))
    x = random(2, 3, 4)
    inner = x @ layer.inner.weight.T + (layer.inner.bias if bias else 0.0)
    if activation.startswith(("swiglu", "geglu")):  # (activation(x·W) ⊙ x·V)·W₂
        assert layer.inner.weight.shape == (12, 4)
        inner = FORMULAS[activation](inner[..., :6]) * inner[..., 6:]
    else:
        assert layer.inner.weight.shape == (6, 4)
        inner = FORMULAS[activation](inner)
    torch.testing.assert_close(layer(x), inner @ layer.outer.weight.T + (layer.outer.bias if bias else 0.0))
    assert (layer.inner.bias is None) == (layer.outer.bias is None) == (not bias)
    right_gradients(layer, layer, x)


def normalised(x: Tensor, norm: Any) -> Tensor:
    if isinstance(norm, nn.RMSNorm):
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight
    return scaled if norm.bias is None else scaled + norm.bias


@pytest.mark.parametrize("changes", NORMS)
def test_normalisations_are_their_formula_with_the_right_gradients(changes: dict[str, Any]) -> None:
    norm, x = drawn(make_norm(config(d_model=4, heads=2, **changes))), random(2, 3, 4)
    torch.testing.assert_close(norm(x), normalised(x, norm))
    assert len(list(norm.parameters())) == (2 if changes == NORMS[0] else 1)
    right_gradients(norm, norm, x)


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("changes", NORMS)
def test_where_the_normalisation_stands(norm: str, changes: dict[str, Any]) -> None:
    residual, matrix, x = (
        drawn(Residual(config(d_model=4, heads=2, norm=norm, **changes))),
        random(4, 4),
        random(2, 3, 4),
    )
    expected = x + normalised(x, residual.norm) @ matrix if norm == "pre" else normalised(x + x @ matrix, residual.norm)
    torch.testing.assert_close(residual(x, lambda value: value @ matrix), expected)
    right_gradients(residual, lambda x: residual(x, lambda value: value @ matrix), x)


def test_dropout_is_on_the_part_not_on_the_residual_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    residual, x = Residual(config(dropout=0.25)), torch.full((50, 40, 32), 3.0)
    added = residual.train()(x, torch.ones_like) - x
    assert added.unique().tolist() == [0.0, pytest.approx(1 / 0.75)]
    assert (added == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    torch.testing.assert_close(residual.eval()(x, torch.ones_like), x + 1)


def torchs(prefix: str, theirs: str, attention: Any) -> dict[str, Tensor]:
    return {
        f"{theirs}.in_proj_weight": torch.cat([attention.query.weight, attention.key_value.weight]),
        f"{theirs}.in_proj_bias": torch.cat([attention.query.bias, attention.key_value.bias]),
        f"{theirs}.out_proj.weight": attention.output.weight,
        f"{theirs}.out_proj.bias": attention.output.bias,
    }


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("cross", [False, True])
def test_a_block_is_torchs_own_layer(cross: bool, norm: str, activation: str) -> None:
    block = drawn(Block(config(norm=norm, activation=activation), cross=cross))
    made = nn.TransformerDecoderLayer if cross else nn.TransformerEncoderLayer
    theirs = made(32, 4, 64, 0.0, activation=activation, batch_first=True, norm_first=norm == "pre").double()
    norms = [block.attention_residual.norm, block.feed_forward_residual.norm]
    weights = torchs("attention", "self_attn", block.attention)
    if cross:
        weights |= torchs("cross_attention", "multihead_attn", block.cross_attention)
        norms.insert(1, block.cross_residual.norm)
    for name, layer in [
        ("linear1", block.feed_forward.inner),
        ("linear2", block.feed_forward.outer),
        *((f"norm{n}", layer) for n, layer in enumerate(norms, 1)),
    ]:
        weights |= {f"{name}.weight": layer.weight, f"{name}.bias": layer.bias}
    theirs.load_state_dict(weights)
    x, memory, real = random(2, 6, 32), random(2, 5, 32), torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    if cross:
        ours = block(x, Visibility(causal=True), memory_BSD=memory, memory_visibility=Visibility(real[:, None, None]))
        causal = nn.Transformer.generate_square_subsequent_mask(6).double()
        expected = theirs(x, memory, tgt_mask=causal, memory_key_padding_mask=~real, tgt_is_causal=True)
    else:
        x = x[:, :5]
        ours = block(x, Visibility(real[:, None, None, :]))
        expected = theirs(x, src_key_padding_mask=~real)  # in training mode, without dropout: not its fast path
        ours, expected = ours[real], expected[real]
    torch.testing.assert_close(ours, expected, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "changes", [{}, {"scale_logits": True}, {"output_bias": True}, {"output_transform": True, "output_bias": True}]
)
def test_the_output_is_a_product_with_the_embeddings_or_a_matrix_of_its_own(
    tied: bool, changes: dict[str, Any]
) -> None:
    head = drawn(OutputHead(config(d_model=4, heads=2, vocab_size=7, tied_output=tied, **changes)))
    hidden, embedding = random(5, 4), random(7, 4)
    expected = hidden
    if "output_transform" in changes:
        linear, _, norm = head.transform
        expected = normalised(FORMULAS["gelu"](expected @ linear.weight.T + linear.bias), norm)
    expected = expected @ (embedding if tied else head.weight_VD).T
    expected = expected / 2 if "scale_logits" in changes else expected
    expected = expected + head.bias_V if "output_bias" in changes else expected
    torch.testing.assert_close(head(hidden, embedding if tied else None), expected)
    assert (head.weight_VD is None) == tied
