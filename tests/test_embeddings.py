"""Embeddings: rows of a matrix, or composed from characters, against loops over tokens and bytes."""

import math
from typing import Any

import pytest
import torch
from tiny import VOCAB_SIZE, model, tokenizer
from torch import Tensor
from torch.nn import functional

from lightning_modules.transformer.embeddings import CharacterEmbedding, TokenEmbedding

TOKENS = [b"", b"a", b"ab", b"ba", "größer".encode(), b"abcdefgh", b"abcdefghij", b"ab"]


def composing(token_characters: int = 8, d_model: int = 6) -> CharacterEmbedding:
    torch.manual_seed(0)
    made = CharacterEmbedding(len(TOKENS), token_characters, d_model).double()
    made.spell(TOKENS)
    return made


def by_the_loop(made: CharacterEmbedding, token: bytes) -> Tensor:
    """One token: its bytes' vectors, each filter's greatest value where it slides, a highway layer, a projection."""
    limit = made.characters_VC.shape[1]
    number = [byte + 1 for byte in token[:limit]] + [0] * (limit - len(token))
    rows = [made.character.weight[n] for n in number]
    found = []
    for layer in made.filters:
        count, _, width = layer.weight.shape  # type: ignore[attr-defined, misc]
        none = [torch.zeros_like(rows[0])] * (width - 1)
        around = torch.stack([*none, *rows, *none])  # the filter slides in and out over nothing
        windows = [around[start : start + width] for start in range(len(around) - width + 1)]
        for n in range(count):
            values = [(window.T * layer.weight[n]).sum() + layer.bias[n] for window in windows]  # type: ignore[index]
            found.append(max(values).clamp(min=0))
    x = torch.stack(found)
    made_x, gate = (x @ made.highway.weight.T + made.highway.bias).chunk(2)
    share = 1 / (1 + (-gate).exp())
    carried = share * made_x.clamp(min=0) + (1 - share) * x
    return carried @ made.projection.weight.T + made.projection.bias


def test_a_token_is_composed_from_its_characters() -> None:
    made = composing()
    ids = torch.tensor([[1, 4, 0], [5, 6, 1]])
    out = made(ids)
    expected = {token: by_the_loop(made, TOKENS[token]) for token in ids.unique().tolist()}
    for row in range(2):
        for column in range(3):
            torch.testing.assert_close(out[row, column], expected[int(ids[row, column])])


def test_alike_spelled_is_alike_wherever_it_stands_and_order_counts() -> None:
    made = composing()
    out = made(torch.tensor([[2, 1, 7], [3, 2, 2]]))
    assert torch.equal(out[0, 0], out[1, 1])
    assert torch.equal(out[0, 0], out[1, 2])
    assert torch.equal(out[0, 0], out[0, 2])  # another entry of the vocabulary, the same bytes
    assert not torch.isclose(out[0, 0], out[1, 0]).all()  # ab, ba


def test_bytes_beyond_the_limit_are_not_seen() -> None:
    made = composing(token_characters=8)
    assert torch.equal(made(torch.tensor([5])), made(torch.tensor([6])))
    longer = composing(token_characters=10)
    assert not torch.isclose(longer(torch.tensor([5])), longer(torch.tensor([6]))).all()


def test_spelling_again_forgets_the_old_bytes() -> None:
    made = composing()
    before = made(torch.tensor([1]))
    made.spell([b"abcdefgh"] * len(TOKENS))
    made.spell(TOKENS)
    assert torch.equal(made(torch.tensor([1])), before)


@pytest.mark.parametrize("count", [len(TOKENS) - 1, len(TOKENS) + 1])
def test_another_number_of_tokens_than_the_vocabulary_has_is_an_error(count: int) -> None:
    with pytest.raises(ValueError, match="zip"):
        composing().spell([b"a"] * count)


def test_gradients_reach_every_part_and_no_character_that_is_absent() -> None:
    made = composing()
    made(torch.tensor([[1, 2], [3, 4]])).square().sum().backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    assert made.character.weight.grad is not None
    used = made.character.weight.grad.abs().sum(-1).nonzero().flatten().tolist()
    assert used == sorted({byte + 1 for token in TOKENS[1:5] for byte in token})


def test_what_is_spelled_is_in_the_checkpoint() -> None:
    made, fresh = composing(), CharacterEmbedding(len(TOKENS), 8, 6).double()
    fresh.load_state_dict(made.state_dict())
    assert torch.equal(fresh(torch.arange(8)), made(torch.arange(8)))


def test_a_token_matrix_gives_its_rows_and_the_model_scales_them() -> None:
    made = TokenEmbedding(50, 16)
    torch.nn.init.normal_(made.weight_VD)
    ids = torch.tensor([[3, 49], [0, 3]])
    assert torch.equal(made(ids), made.weight_VD[ids])
    scaled, plain = (model(architecture="encoder", scale_embeddings=scale) for scale in (True, False))
    torch.testing.assert_close(scaled.embed(ids), plain.embed(ids) * math.sqrt(32))
    assert torch.equal(plain.embed(ids), plain.embedding.weight_VD[ids])


@pytest.mark.parametrize("architecture", ["encoder", "decoder", "encoder_decoder"])
def test_a_model_of_characters_learns_and_padding_has_a_vector_too(architecture: str) -> None:
    made: Any = model(architecture=architecture, embeddings="characters", tied_output=False).train()
    vocabulary = tokenizer()
    made.embedding.spell([(vocabulary.id_to_token(n) or "").encode() for n in range(VOCAB_SIZE)])
    ids = torch.tensor([[9, 300, 41, 500, 7, 0], [0, 0, 599, 22, 9, 300]])
    optimizer, losses = torch.optim.Adam(made.parameters(), lr=3e-3), []
    for _ in range(8):
        hidden = made(ids, ids != 0) if architecture == "encoder" else made(ids, ids[:, :5], ids != 0)
        wanted = ids if architecture == "encoder" else ids[:, 1:]
        loss = functional.cross_entropy(made.logits(hidden).flatten(0, 1), wanted.flatten())
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in made.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5
