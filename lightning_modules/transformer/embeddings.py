"""Token embeddings (section 3.4 of the paper): a vector for each entry of the vocabulary, or one made of characters.

Looking up costs nothing beside a layer; composing from characters costs a convolution over the distinct tokens of a
batch.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_modules.transformer.config import TransformerConfig

CHARACTERS = 257  # bytes of UTF-8, and 0 for none
_CHARACTER_WIDTH = 16
_FILTERS = ((1, 32), (2, 32), (3, 64), (4, 128), (5, 256))  # (characters seen, filters): ELMo's without its two widest


class TokenEmbedding(nn.Module):
    """One matrix (V, D), which the output can share."""

    def __init__(self, vocab_size: int, d_model: int) -> None:
        super().__init__()
        self.weight_VD = nn.Parameter(torch.empty(vocab_size, d_model))

    def forward(self, ids_BL: Tensor) -> Tensor:
        """Ids (B, L) → embeddings (B, L, D)."""
        return functional.embedding(ids_BL, self.weight_VD)


class CharacterEmbedding(nn.Module):
    """A token's vector composed from its characters (Kim et al. 2016, arXiv:1508.06615, section 2).

    Characters, as bytes of UTF-8, have small vectors; filters of several widths slide over them; each filter's greatest
    value goes through a highway layer and a projection. Tokens spelled alike get vectors alike, whatever their counts.
    """

    characters_VC: Tensor

    def __init__(self, vocab_size: int, token_characters: int, d_model: int) -> None:
        super().__init__()
        self.register_buffer("characters_VC", torch.zeros(vocab_size, token_characters, dtype=torch.long))
        filters = sum(count for _, count in _FILTERS)
        self.character = nn.Embedding(CHARACTERS, _CHARACTER_WIDTH, padding_idx=0)
        self.filters = nn.ModuleList(
            nn.Conv1d(_CHARACTER_WIDTH, count, width, padding=width - 1) for width, count in _FILTERS
        )
        self.highway = nn.Linear(filters, 2 * filters)
        self.projection = nn.Linear(filters, d_model)

    def spell(self, tokens: list[bytes]) -> None:
        """Says which bytes each token of the vocabulary has; those beyond `token_characters` are not seen."""
        for spelled_C, token in zip(self.characters_VC, tokens, strict=True):
            spelled_C.zero_()
            spelled_C[: len(token)] = torch.tensor([byte + 1 for byte in token[: len(spelled_C)]])

    def forward(self, ids_BL: Tensor) -> Tensor:
        """Ids (B, L) → embeddings (B, L, D)."""
        ids_U, inverse_BL = torch.unique(ids_BL, return_inverse=True)
        x_UKC = self.character(self.characters_VC[ids_U]).transpose(1, 2)
        found_UF = torch.cat([layer(x_UKC).amax(dim=-1) for layer in self.filters], dim=-1).relu()
        made_UF, gate_UF = self.highway(found_UF).chunk(2, dim=-1)
        carried_UF = torch.lerp(found_UF, made_UF.relu(), gate_UF.sigmoid())
        return self.projection(carried_UF)[inverse_BL]


def make_embedding(config: TransformerConfig) -> TokenEmbedding | CharacterEmbedding:
    """The input layer that `config.embeddings` names."""
    if config.embeddings == "tokens":
        return TokenEmbedding(config.vocab_size, config.d_model)
    return CharacterEmbedding(config.vocab_size, config.token_characters, config.d_model)
