"""One layer of either stack: attention and feed-forward, each with residual, dropout and layer normalisation."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional

from lightning_modules.transformer.attention import Attention, LayerCache
from lightning_modules.transformer.config import TransformerConfig


class FeedForward(nn.Module):
    """max(0, x·W₁ + b₁)·W₂ + b₂ (section 3.3 of the paper)."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.inner = nn.Linear(d_model, d_ff)
        self.outer = nn.Linear(d_ff, d_model)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """(B, L, D) → (B, L, F) → (B, L, D)."""
        return self.outer(functional.relu(self.inner(x_BLD)))


class Residual(nn.Module):
    """x + dropout(part(x)) with a layer normalisation: after the sum (post, the paper's) or before the part (pre)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.d_model)
        self.dropout, self.pre = config.dropout, config.norm == "pre"

    def forward(self, x_BLD: Tensor, part: Callable[[Tensor], Tensor]) -> Tensor:
        """Applies `part` inside the residual connection."""
        out_BLD = part(self.norm(x_BLD) if self.pre else x_BLD)
        if self.training and self.dropout:
            out_BLD = functional.dropout(out_BLD, self.dropout)
        return x_BLD + out_BLD if self.pre else self.norm(x_BLD + out_BLD)


class Block(nn.Module):
    """An encoder layer, or with `cross` a decoder layer: causal self-attention, then attention to the memory."""

    def __init__(self, config: TransformerConfig, cross: bool) -> None:
        super().__init__()
        self.attention = Attention(config.d_model, config.heads, config.dropout)
        self.attention_residual = Residual(config)
        if cross:
            self.cross_attention = Attention(config.d_model, config.heads, config.dropout)
            self.cross_residual = Residual(config)
        self.feed_forward = FeedForward(config.d_model, config.d_ff)
        self.feed_forward_residual = Residual(config)

    def forward(
        self,
        x_BLD: Tensor,
        mask_B11L: Tensor | None = None,
        memory_BSD: Tensor | None = None,
        memory_mask_B11S: Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """(B, L, D) → (B, L, D). With a memory the layer is a decoder's, and causal."""
        causal = memory_BSD is not None
        x_BLD = self.attention_residual(
            x_BLD, lambda x: self.attention(x, mask_B11S=mask_B11L, causal=causal, cache=cache and cache.own)
        )
        if memory_BSD is not None:
            x_BLD = self.cross_residual(
                x_BLD,
                lambda x: self.cross_attention(
                    x, memory_BSD=memory_BSD, mask_B11S=memory_mask_B11S, cache=cache and cache.cross
                ),
            )
        return self.feed_forward_residual(x_BLD, self.feed_forward)
