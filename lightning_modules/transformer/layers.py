"""One layer of either stack: attention and feed-forward, each with residual, dropout and normalisation."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_modules.transformer.attention import Attention, LayerCache, columns
from lightning_modules.transformer.config import GATED, TransformerConfig
from lightning_modules.transformer.cross_entropy import linear_cross_entropy
from lightning_modules.transformer.dropout import dropout
from lightning_modules.transformer.gradients import SLOPES, RMSNorm, gate, gate_apart
from lightning_modules.transformer.linear import Linear, scores
from lightning_modules.transformer.masks import Visibility

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "silu": functional.silu,
    "relu2": lambda x: functional.relu(x).square(),
    "swiglu": functional.silu,
    "geglu": functional.gelu,
    "geglu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
}


def make_norm(config: TransformerConfig) -> nn.Module:
    """Layer normalisation (Ba et al. 2016, arXiv:1607.06450), or by the root mean square alone (Zhang and Sennrich
    2019, arXiv:1910.07467)."""
    if config.norm_type == "rms":
        return RMSNorm(config.d_model, eps=config.norm_eps)
    return nn.LayerNorm(config.d_model, eps=config.norm_eps, bias=config.bias)


class FeedForward(nn.Module):
    """activation(x·W₁ + b₁)·W₂ + b₂ (section 3.3 of the paper: max(0, ·)).

    GELU and SiLU: Hendrycks and Gimpel 2016, arXiv:1606.08415; ReLU²: So et al. 2021, arXiv:2109.08668. Gated ones
    multiply by a second projection of x: (activation(x·W₁) ⊙ x·V)·W₂ (Shazeer 2020, arXiv:2002.05202).
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.gated, self.activation = config.activation in GATED, ACTIVATIONS[config.activation]
        self.slope = SLOPES.get(config.activation)
        self.inner = Linear(config.d_model, config.d_ff * (2 if self.gated else 1), bias=config.bias)
        self.outer = Linear(config.d_ff, config.d_model, bias=config.bias)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """(B, L, D) → (B, L, F) → (B, L, D)."""
        if self.slope is None:
            return self.outer(self.activation(self.inner(x_BLD)))
        if self.inner.has_many(x_BLD):
            return self.outer(gate_apart(*self.inner.halves(x_BLD), self.activation, self.slope))
        return self.outer(gate(self.inner(x_BLD), self.activation, self.slope))


class Residual(nn.Module):
    """x + dropout(part(x)) with a normalisation: after the sum (post, the paper's) or before the part (pre)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm = make_norm(config)
        self.dropout, self.pre = config.dropout, config.norm == "pre"

    def forward(self, x_BLD: Tensor, part: Callable[[Tensor], Tensor], columns_BM: Tensor | None = None) -> Tensor:
        """Applies `part` inside the residual connection; it gives the `columns` of x alone, where they are told."""
        out_BLD = part(self.norm(x_BLD) if self.pre else x_BLD)
        if columns_BM is not None:
            x_BLD = columns(x_BLD, columns_BM)
        if self.training:
            out_BLD = dropout(out_BLD, self.dropout)
        return x_BLD + out_BLD if self.pre else self.norm(x_BLD + out_BLD)


class Block(nn.Module):
    """A layer of self-attention and feed-forward; with `cross`, attention to the encoder's output between them."""

    def __init__(self, config: TransformerConfig, cross: bool) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.attention_residual = Residual(config)
        if cross:
            self.cross_attention = Attention(config)
            self.cross_residual = Residual(config)
        self.feed_forward = FeedForward(config)
        self.feed_forward_residual = Residual(config)

    def forward(
        self,
        x_BLD: Tensor,
        visibility: Visibility,
        turns: tuple[Tensor, Tensor] | None = None,
        memory_BSD: Tensor | None = None,
        memory_visibility: Visibility | None = None,
        cache: LayerCache | None = None,
        columns_BM: Tensor | None = None,
    ) -> Tensor:
        """(B, L, D) → (B, L, D), or (B, M, D) of the given `columns`, which alone are computed as far as possible."""
        x_BLD = self.attention_residual(
            x_BLD,
            lambda x: self.attention(x, visibility, turns=turns, cache=cache and cache.own, columns_BM=columns_BM),
            columns_BM,
        )
        if memory_BSD is not None:
            seen = memory_visibility or Visibility()
            x_BLD = self.cross_residual(
                x_BLD, lambda x: self.cross_attention(x, seen, memory_BSD=memory_BSD, cache=cache and cache.cross)
            )
        return self.feed_forward_residual(x_BLD, self.feed_forward)


class OutputHead(nn.Module):
    """Hidden vectors → a score for each token, by the embedding matrix or one of its own.

    With `output_transform` a layer, GELU and normalisation come first (BERT, arXiv:1810.04805, as released).
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.transform: nn.Module | None = None
        if config.output_transform:
            self.transform = nn.Sequential(Linear(config.d_model, config.d_model), nn.GELU(), make_norm(config))
        self.weight_VD = None if config.tied_output else nn.Parameter(torch.empty(config.vocab_size, config.d_model))
        self.bias_V = nn.Parameter(torch.zeros(config.vocab_size)) if config.output_bias else None
        self.scale = config.d_model**-0.5 if config.scale_logits else 1.0

    def forward(self, hidden_ND: Tensor, embedding_VD: Tensor | None) -> Tensor:
        """Hidden vectors (…, D) → scores (…, V); `embedding` is the matrix to use where the output is tied."""
        return scores(*self._factors(hidden_ND, embedding_VD), self.bias_V)

    def cross_entropy(
        self, hidden_ND: Tensor, embedding_VD: Tensor | None, target_N: Tensor, label_smoothing: float
    ) -> Tensor:
        """Sum of the cross-entropies of the scores in nats, in float32 at least; no more of them exist than needed."""
        factors = self._factors(hidden_ND, embedding_VD)
        return linear_cross_entropy(*factors, self.bias_V, target_N, label_smoothing)

    def _factors(self, hidden_ND: Tensor, embedding_VD: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.transform is not None:
            hidden_ND = self.transform(hidden_ND)
        if self.scale != 1.0:
            hidden_ND = hidden_ND * self.scale
        weight_VD = embedding_VD if self.weight_VD is None else self.weight_VD
        assert weight_VD is not None
        return hidden_ND, weight_VD
