"""Positions and embeddings: the paper's formulas digit by digit, and Hugging Face's table."""

import math

import pytest
import torch
from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding

from lightning_modules.transformer.embeddings import TiedEmbedding
from lightning_modules.transformer.positions import SinusoidalPositions, sinusoids


@pytest.mark.parametrize("d_model", [2, 6, 64])
def test_the_table_is_the_formula_of_the_paper(d_model: int) -> None:
    table = sinusoids(300, d_model)
    for position in (0, 1, 2, 17, 299):
        for i in range(d_model // 2):
            angle = position / 10_000 ** (2 * i / d_model)
            assert table[position, 2 * i] == pytest.approx(math.sin(angle), abs=5e-5)
            assert table[position, 2 * i + 1] == pytest.approx(math.cos(angle), abs=5e-5)


def test_the_table_is_marians_with_its_halves_interleaved() -> None:
    theirs = MarianSinusoidalPositionalEmbedding(200, 32).create_weight()
    ours = sinusoids(200, 32)
    torch.testing.assert_close(torch.cat([ours[:, 0::2], ours[:, 1::2]], dim=1), theirs, atol=3e-5, rtol=0)


def test_positions_are_added_from_start_on() -> None:
    positions, x = SinusoidalPositions(10, 4), torch.randn(2, 3, 4)
    torch.testing.assert_close(positions(x), x + sinusoids(10, 4)[:3])
    torch.testing.assert_close(positions(x, start=7), x + sinusoids(10, 4)[7:])
    assert positions(x.bfloat16()).dtype == torch.bfloat16


def test_a_position_beyond_the_table_is_an_error_that_names_the_key() -> None:
    positions = SinusoidalPositions(10, 4)
    with pytest.raises(ValueError, match=r"11 tokens .*model\.max_length \(10\)"):
        positions(torch.zeros(1, 3, 4), start=8)


def test_the_table_is_not_in_the_checkpoint() -> None:
    assert SinusoidalPositions(10, 4).state_dict() == {}


def test_embeddings_are_rows_times_the_root_of_d_model_and_logits_the_same_matrix() -> None:
    torch.manual_seed(0)
    embedding = TiedEmbedding(50, 16)
    ids = torch.tensor([[3, 49], [0, 3]])
    torch.testing.assert_close(embedding(ids), embedding.weight_VD[ids] * 4.0)
    hidden = torch.randn(5, 16)
    torch.testing.assert_close(embedding.logits(hidden), hidden @ embedding.weight_VD.T)
    assert sum(p.numel() for p in embedding.parameters()) == 50 * 16


def test_fresh_embeddings_have_unit_variance_going_in_and_coming_out() -> None:
    torch.manual_seed(0)
    embedding = TiedEmbedding(4000, 64)
    assert embedding(torch.arange(4000)).std().item() == pytest.approx(1.0, rel=0.02)
    normalised = torch.nn.functional.layer_norm(torch.randn(50, 64), (64,))
    assert embedding.logits(normalised).std().item() == pytest.approx(1.0, rel=0.03)
