"""Token embeddings, shared between the input of both stacks and the output (section 3.4 of the paper)."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class TiedEmbedding(nn.Module):
    """One matrix, read as embeddings going in and as the output projection coming out.

    Entries start normal with deviation 1/√d_model: times √d_model going in they have unit variance, and logits of a
    normalised hidden vector have it too, so that training starts near a uniform distribution.
    """

    def __init__(self, vocab_size: int, d_model: int) -> None:
        super().__init__()
        self.weight_VD = nn.Parameter(torch.empty(vocab_size, d_model))
        self.scale = d_model**0.5
        nn.init.normal_(self.weight_VD, std=d_model**-0.5)

    def forward(self, ids_BL: Tensor) -> Tensor:
        """Ids (B, L) → embeddings × √d_model (B, L, D)."""
        return functional.embedding(ids_BL, self.weight_VD) * self.scale

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Hidden vectors (…, D) → a score for each token (…, V)."""
        return functional.linear(hidden_ND, self.weight_VD)
