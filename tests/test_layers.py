"""The parts of a layer: feed-forward, residual, block, each against the arithmetic written out."""

import pytest
import torch
from tiny import config
from torch import nn
from torch.nn import functional

from lightning_modules.transformer.layers import Block, FeedForward, Residual


def test_feed_forward_is_two_affine_maps_with_a_relu_between() -> None:
    torch.manual_seed(0)
    layer, x = FeedForward(8, 20), torch.randn(2, 3, 8)
    inner = (x @ layer.inner.weight.T + layer.inner.bias).clamp(min=0)
    assert layer.inner.weight.shape == (20, 8)
    torch.testing.assert_close(layer(x), inner @ layer.outer.weight.T + layer.outer.bias)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_where_the_normalisation_stands(norm: str) -> None:
    torch.manual_seed(0)
    residual, x, matrix = Residual(config(norm=norm)), torch.randn(2, 3, 32), torch.randn(32, 32)
    nn.init.normal_(residual.norm.weight)
    nn.init.normal_(residual.norm.bias)

    def normalise(value: torch.Tensor) -> torch.Tensor:
        centred = value - value.mean(-1, keepdim=True)
        scaled = centred / (value.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        return scaled * residual.norm.weight + residual.norm.bias

    expected = x + normalise(x) @ matrix if norm == "pre" else normalise(x + x @ matrix)
    torch.testing.assert_close(residual(x, lambda value: value @ matrix), expected, atol=1e-5, rtol=1e-5)


def test_dropout_is_on_the_part_not_on_the_residual_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    residual, x = Residual(config(dropout=0.25)), torch.full((50, 40, 32), 3.0)
    added = residual.train()(x, torch.ones_like) - x
    assert added.unique().tolist() == [0.0, pytest.approx(1 / 0.75)]
    assert (added == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    torch.testing.assert_close(residual.eval()(x, torch.ones_like), x + 1)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_a_block_is_torchs_own_encoder_layer(norm: str) -> None:
    torch.manual_seed(0)
    block = Block(config(norm=norm), cross=False).eval()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    theirs = nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True, norm_first=norm == "pre")
    attention = block.attention
    theirs.load_state_dict(
        {
            "self_attn.in_proj_weight": torch.cat([attention.query.weight, attention.key_value.weight]),
            "self_attn.in_proj_bias": torch.cat([attention.query.bias, attention.key_value.bias]),
            "self_attn.out_proj.weight": attention.output.weight,
            "self_attn.out_proj.bias": attention.output.bias,
            "linear1.weight": block.feed_forward.inner.weight,
            "linear1.bias": block.feed_forward.inner.bias,
            "linear2.weight": block.feed_forward.outer.weight,
            "linear2.bias": block.feed_forward.outer.bias,
            "norm1.weight": block.attention_residual.norm.weight,
            "norm1.bias": block.attention_residual.norm.bias,
            "norm2.weight": block.feed_forward_residual.norm.weight,
            "norm2.bias": block.feed_forward_residual.norm.bias,
        }
    )
    x, real = torch.randn(2, 6, 32), torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    ours = block(x, mask_B11L=real[:, None, None, :])
    expected = theirs(x, src_key_padding_mask=~real)  # in training mode, without dropout: not its fast path
    torch.testing.assert_close(ours[real], expected[real], atol=1e-5, rtol=1e-4)


def test_with_a_memory_a_block_is_causal_and_without_it_is_not() -> None:
    torch.manual_seed(0)
    encoder, decoder = Block(config(), cross=False).eval(), Block(config(), cross=True).eval()
    x, memory = torch.randn(1, 5, 32), torch.randn(1, 3, 32)
    changed = torch.cat([x[:, :4], torch.randn(1, 1, 32)], dim=1)
    assert torch.equal(decoder(x, memory_BSD=memory)[:, :4], decoder(changed, memory_BSD=memory)[:, :4])
    assert not torch.isclose(encoder(x)[:, :4], encoder(changed)[:, :4]).all(-1).any()
    assert (
        not functional.cosine_similarity(decoder(x, memory_BSD=memory), decoder(x, memory_BSD=-memory), dim=-1)
        .isclose(torch.tensor(1.0))
        .any()
    )
