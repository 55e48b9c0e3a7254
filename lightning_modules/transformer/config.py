"""The shape of a Transformer: plain data, saved beside the weights."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes as in the 2017 paper, section 3; `norm` says on which side of each residual the normalisation stands."""

    vocab_size: int
    d_model: int
    heads: int
    d_ff: int
    encoder_layers: int
    decoder_layers: int
    dropout: float
    norm: Literal["pre", "post"]
    max_length: int
    architecture: Literal["encoder_decoder"] = "encoder_decoder"
    pad_id: int = 0
    bos_id: int = 1
    eos_id: int = 2

    def __post_init__(self) -> None:
        """Raises ValueError where `heads` does not divide `d_model` or `d_model` is odd."""
        if self.d_model % self.heads:
            raise ValueError(f"heads ({self.heads}) does not divide d_model ({self.d_model})")
        if self.d_model % 2:
            raise ValueError(f"d_model ({self.d_model}) is odd: sinusoidal positions need pairs of sine and cosine")
