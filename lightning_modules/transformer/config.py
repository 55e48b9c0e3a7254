"""The shape of a Transformer: plain data, saved beside the weights. Named shapes are in `presets`."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Literal, get_args, get_origin

Architecture = Literal["encoder", "decoder", "encoder_decoder"]
Positions = Literal["sinusoidal", "learned", "rotary", "alibi", "relative", "none"]
Activation = Literal["relu", "gelu", "gelu_tanh", "silu", "relu2", "swiglu", "geglu", "geglu_tanh"]
GATED = ("swiglu", "geglu", "geglu_tanh")
OBJECTIVES: dict[str, frozenset[str]] = {  # which architectures can learn what from unlabelled text
    "causal_lm": frozenset({"decoder"}),
    "prefix_lm": frozenset({"decoder", "encoder_decoder"}),
    "masked_lm": frozenset({"encoder"}),
    "span_corruption": frozenset({"decoder", "encoder_decoder"}),
    "denoising": frozenset({"decoder", "encoder_decoder"}),
}
_ABOVE_ZERO = (
    *("vocab_size", "d_model", "heads", "d_ff", "max_length", "token_characters", "key_value_heads", "head_width"),
    *("rotary_base", "rotary_scaling", "norm_eps"),
)


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """All that decides what a model computes. The defaults are the 2017 paper's choices where it made one."""

    architecture: Architecture
    vocab_size: int
    d_model: int
    heads: int
    d_ff: int  # inner width of the feed-forward; of a gated one, the width of each of its two halves
    encoder_layers: int  # read by encoder and encoder_decoder
    decoder_layers: int  # read by decoder and encoder_decoder
    max_length: int  # longest sequence in training; a limit for learned positions only
    dropout: float = 0.1  # after the embeddings and on what each part adds to the residual (section 5.4)
    attention_dropout: float = 0.0  # on the attention weights

    # What goes in
    embeddings: Literal["tokens", "characters"] = "tokens"  # a vector a token, or one composed from its characters
    token_characters: int = 16  # longest token, in UTF-8 bytes, of which a character composition sees all
    scale_embeddings: bool = True  # × √d_model (section 3.4)
    embedding_norm: bool = False  # a normalisation after the sum of embeddings and positions (BERT, BART)
    token_types: int = 0  # kinds of segment with a learned vector each (BERT: 2)

    # Where it stands
    positions: Positions = "sinusoidal"
    rotary_base: float = 10_000.0  # wavelengths run from 2π to base·2π
    rotary_scaling: float = 1.0  # positions are divided by it: contexts that many times longer than trained
    relative_buckets: int = 32  # T5's: distances share learned biases in buckets,
    relative_distance: int = 128  # logarithmically wider up to here

    # Attention
    key_value_heads: int | None = None  # fewer than heads: grouped-query; 1: multi-query; None: as many
    head_width: int | None = None  # None: d_model / heads
    scale_attention: bool = True  # scores divided by √head_width (section 3.2.1); T5 has it in its first weights
    qk_norm: bool = False  # queries and keys normalised in each head
    window: int | None = None  # tokens further away than window - 1 are hidden
    bidirectional_prefix: bool = False  # a decoder's source sees itself in both directions: prefix LM

    # Feed-forward and normalisation
    activation: Activation = "relu"
    norm: Literal["pre", "post"] = "post"  # before or after the residual sum; post is the paper's
    norm_type: Literal["layer", "rms"] = "layer"
    norm_eps: float = 1e-5
    bias: bool = True  # in linear layers and layer normalisations

    # What comes out
    tied_output: bool = True  # the output projection is the embedding matrix (section 3.4)
    scale_logits: bool = False  # / √d_model (T5 with tied embeddings)
    output_transform: bool = False  # a layer, activation and normalisation before the projection (BERT)
    output_bias: bool = False  # a bias for each token of the vocabulary

    initialization: Literal["xavier", "normal", "t5"] = "xavier"

    pad_id: int = 0
    bos_id: int = 1  # what a decoder reads first
    eos_id: int = 2

    @property
    def width_of_heads(self) -> int:
        """Width of one head."""
        return self.head_width or self.d_model // self.heads

    @property
    def groups(self) -> int:
        """Heads of keys and values."""
        return self.key_value_heads or self.heads

    def __post_init__(self) -> None:
        """Raises ValueError, with the name of the field first, for an impossible value or fields that contradict."""
        for check in (self._impossible, self._problems):
            for field, problem in check():
                raise ValueError(f"{field}: {problem}")

    def _impossible(self) -> Iterator[tuple[str, str]]:
        for field in fields(self):
            value, known = getattr(self, field.name), get_args(field.type)
            if get_origin(field.type) is Literal and value not in known:
                yield field.name, f"{value!r} is none of {', '.join(known)}"
            if field.name in _ABOVE_ZERO and value is not None and value <= 0:
                yield field.name, f"{value} is not above 0"
            if field.name in ("dropout", "attention_dropout") and not 0 <= value < 1:
                yield field.name, f"{value} is not a share from 0 to below 1"

    def _problems(self) -> list[tuple[str, str]]:
        encodes, decodes = self.architecture != "decoder", self.architecture != "encoder"
        sinusoidal = self.positions == "sinusoidal"
        checks = [
            (encodes and self.encoder_layers < 1, "encoder_layers", f"architecture {self.architecture} needs some"),
            (decodes and self.decoder_layers < 1, "decoder_layers", f"architecture {self.architecture} needs some"),
            (
                self.head_width is None and self.d_model % self.heads,
                "heads",
                f"{self.heads} does not divide d_model ({self.d_model}); change one, or set head_width",
            ),
            (self.heads % self.groups, "key_value_heads", f"{self.groups} does not divide heads ({self.heads})"),
            (sinusoidal and self.d_model % 2, "d_model", f"{self.d_model} is odd: sinusoidal positions come in pairs"),
            (
                self.positions == "rotary" and self.width_of_heads % 2,
                "head_width",
                f"{self.width_of_heads} is odd: rotary positions turn pairs",
            ),
            (
                self.embeddings == "characters" and self.tied_output,
                "tied_output",
                "characters make no matrix to tie the output to: set it to false",
            ),
            (self.token_types and self.architecture != "encoder", "token_types", "for an encoder only"),
            (
                self.bidirectional_prefix and self.architecture != "decoder",
                "bidirectional_prefix",
                "for a decoder only",
            ),
            (self.window is not None and self.window < 1, "window", "must be 1 or more, or null for none"),
            (self.relative_buckets < 4 or self.relative_buckets % 2, "relative_buckets", "must be even and 4 or more"),
            (
                self.relative_distance <= self.relative_buckets // 2,
                "relative_distance",
                f"{self.relative_distance} is no further than the buckets of one distance each reach: more than "
                f"{self.relative_buckets // 2} is needed",
            ),
        ]
        return [(field, problem) for wrong, field, problem in checks if wrong]
