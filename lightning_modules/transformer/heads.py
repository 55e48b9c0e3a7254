"""What an encoder is for after pre-training: pointing at an answer, or choosing a class. Both cost one small matrix."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_modules.transformer.model import Encoder


class SpanReader(nn.Module):
    """Where in its source an answer begins and ends (Devlin et al. 2019, arXiv:1810.04805, sections 4.2 and 4.3).

    Where there is no answer, both point at a special token, as in section 4.3; here that is the </s> which every source
    ends in, not a token of its own at the beginning: so texts look, and their positions count, as in pre-training.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.config, self.encoder = encoder.config, encoder
        encoder.head.requires_grad_(False)  # not used here: DDP stops where it waits for a gradient that never comes
        self.ends = _linear(encoder.config.d_model, 2)

    def forward(self, source_BS: Tensor, real_BS: Tensor | None = None) -> Tensor:
        """Ids → scores (B, 2, S) of each column as the answer's first and as its last; -∞ at padding."""
        score_B2S = self.ends(self.encoder(source_BS, real_BS)).transpose(1, 2)
        return score_B2S if real_BS is None else score_B2S.masked_fill(~real_BS[:, None, :], float("-inf"))


class Classifier(nn.Module):
    """A class for a text, from the mean of its hidden vectors (Reimers and Gurevych 2019, arXiv:1908.10084, section 3).

    The mean needs no token of its own at the beginning, so that texts look as they did in pre-training.
    """

    def __init__(self, encoder: Encoder, labels: Sequence[str]) -> None:
        """`labels` name the classes, in the order of their scores."""
        super().__init__()
        self.config, self.encoder, self.labels = encoder.config, encoder, tuple(labels)
        encoder.head.requires_grad_(False)  # not used here: DDP stops where it waits for a gradient that never comes
        self.classes = _linear(encoder.config.d_model, len(self.labels))

    def forward(self, source_BS: Tensor, real_BS: Tensor | None = None) -> Tensor:
        """Ids → scores (B, classes)."""
        hidden_BSD = self.encoder(source_BS, real_BS)
        if real_BS is None:
            return self.classes(hidden_BSD.mean(dim=1))
        share_BS = real_BS / real_BS.sum(dim=1, keepdim=True).clamp(min=1)
        return self.classes(torch.einsum("bsd,bs->bd", hidden_BSD, share_BS.to(hidden_BSD.dtype)))


def _linear(width: int, scores: int) -> nn.Linear:
    """A layer with BERT's first weights."""
    made = nn.Linear(width, scores)
    nn.init.normal_(made.weight, std=0.02)
    nn.init.zeros_(made.bias)
    return made
