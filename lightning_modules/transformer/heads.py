"""What an encoder is for after pre-training: pointing at an answer, or choosing a class. Both cost one small matrix."""

import torch
from torch import Tensor, nn

from lightning_modules.transformer.model import Encoder


class SpanReader(nn.Module):
    """Where in its source an answer begins and ends (Devlin et al. 2019, arXiv:1810.04805, section 4.2)."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.config, self.encoder = encoder.config, encoder
        encoder.head.requires_grad_(False)  # not used here: DDP stops where it waits for a gradient that never comes
        self.ends = nn.Linear(encoder.config.d_model, 2)
        nn.init.normal_(self.ends.weight, std=0.02)
        nn.init.zeros_(self.ends.bias)

    def forward(self, source_BS: Tensor, real_BS: Tensor | None = None) -> Tensor:
        """Ids → scores (B, 2, S) of each column as the answer's first and as its last; -∞ at padding."""
        score_B2S = self.ends(self.encoder(source_BS, real_BS)).transpose(1, 2)
        return score_B2S if real_BS is None else score_B2S.masked_fill(~real_BS[:, None, :], float("-inf"))


class Classifier(nn.Module):
    """A class for a text, from the mean of its hidden vectors (Reimers and Gurevych 2019, arXiv:1908.10084, section 3).

    The mean needs no token of its own at the beginning, so that texts look as they did in pre-training.
    """

    def __init__(self, encoder: Encoder, classes: int) -> None:
        super().__init__()
        self.config, self.encoder = encoder.config, encoder
        encoder.head.requires_grad_(False)  # not used here: DDP stops where it waits for a gradient that never comes
        self.classes = nn.Linear(encoder.config.d_model, classes)
        nn.init.normal_(self.classes.weight, std=0.02)
        nn.init.zeros_(self.classes.bias)

    def forward(self, source_BS: Tensor, real_BS: Tensor | None = None) -> Tensor:
        """Ids → scores (B, classes)."""
        hidden_BSD = self.encoder(source_BS, real_BS)
        if real_BS is None:
            return self.classes(hidden_BSD.mean(dim=1))
        share_BS = real_BS / real_BS.sum(dim=1, keepdim=True).clamp(min=1)
        return self.classes(torch.einsum("bsd,bs->bd", hidden_BSD, share_BS.to(hidden_BSD.dtype)))
