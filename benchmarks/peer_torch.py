"""Plain loops on models of torch's own parts, and on x-transformers where it is installed."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from benchmarks.peer_tools import (
    BOS,
    EOS,
    FIRST_REGULAR,
    MASK,
    MASKED_SHARE,
    PAD,
    Clock,
    Contestant,
    Work,
    pairs,
    plain_loop,
    rows,
)
from lightning_modules.objectives import MaskedLM


class GPTBlock(nn.Module):
    """Norms before the parts, queries, keys and values from one matrix, GELU, no biases."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        width = work.d_model
        self.heads = work.heads
        self.attention_norm = nn.LayerNorm(width, bias=False)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.feed_forward_norm = nn.LayerNorm(width, bias=False)
        self.inner = nn.Linear(width, work.d_ff, bias=False)
        self.outer = nn.Linear(work.d_ff, width, bias=False)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """The block's output."""
        batch, length, width = x_BLD.shape
        qkv = self.qkv(self.attention_norm(x_BLD)).split(width, dim=2)
        q, k, v = (part.view(batch, length, self.heads, -1).transpose(1, 2) for part in qkv)
        seen_BHLK = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_BLD = x_BLD + self.output(seen_BHLK.transpose(1, 2).reshape(batch, length, width))
        return x_BLD + self.outer(functional.gelu(self.inner(self.feed_forward_norm(x_BLD))))


class GPT(nn.Module):
    """GPT-2's shape (Radford et al. 2019) as nanoGPT trains it: learned positions, tied output, no biases."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.tokens = nn.Embedding(work.vocab_size, work.d_model)
        self.positions = nn.Embedding(work.length, work.d_model)
        self.blocks = nn.ModuleList(GPTBlock(work) for _ in range(work.layers))
        self.norm = nn.LayerNorm(work.d_model, bias=False)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, ids_BL: Tensor) -> Tensor:
        """Logits (B, L, V)."""
        x_BLD = self.tokens(ids_BL) + self.positions(torch.arange(ids_BL.shape[1], device=ids_BL.device))
        for block in self.blocks:
            x_BLD = block(x_BLD)
        return functional.linear(self.norm(x_BLD), self.tokens.weight)


class TorchDecoder(nn.Module):
    """torch.nn.TransformerEncoder told to be causal."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.tokens = nn.Embedding(work.vocab_size, work.d_model)
        self.positions = nn.Embedding(work.length, work.d_model)
        layer = nn.TransformerEncoderLayer(
            work.d_model, work.heads, work.d_ff, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        norm = nn.LayerNorm(work.d_model)
        self.stack = nn.TransformerEncoder(layer, work.layers, norm, enable_nested_tensor=False)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(work.length))
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=0.02)

    def forward(self, ids_BL: Tensor) -> Tensor:
        """Logits (B, L, V)."""
        length = ids_BL.shape[1]
        x_BLD = self.tokens(ids_BL) + self.positions(torch.arange(length))
        x_BLD = self.stack(x_BLD, mask=self.mask[:length, :length], is_causal=True)  # type: ignore[index]
        return functional.linear(x_BLD, self.tokens.weight)


class TorchPairs(nn.Module):
    """torch.nn.Transformer between tied embeddings, with the sinusoidal positions of its tutorial."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.tokens = nn.Embedding(work.vocab_size, work.d_model, padding_idx=PAD)
        self.body = nn.Transformer(
            work.d_model, work.heads, work.layers, work.layers, work.d_ff, dropout=0.0, batch_first=True
        )
        angle = torch.arange(work.length)[:, None] / 10_000 ** (torch.arange(0, work.d_model, 2) / work.d_model)
        self.register_buffer("positions", torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1))
        nn.init.normal_(self.tokens.weight, std=work.d_model**-0.5)

    def embed(self, ids_BL: Tensor) -> Tensor:
        """× √width, plus the positions."""
        x_BLD = self.tokens(ids_BL) * self.tokens.embedding_dim**0.5
        return x_BLD + self.positions[: ids_BL.shape[1]]  # type: ignore[index]

    def forward(self, source_BS: Tensor, read_BT: Tensor) -> Tensor:
        """Logits (B, T, V)."""
        padded_BS, length = source_BS == PAD, read_BT.shape[1]
        hidden_BTD = self.body(
            self.embed(source_BS),
            self.embed(read_BT),
            tgt_mask=torch.ones(length, length, dtype=torch.bool).triu(1),
            src_key_padding_mask=padded_BS,
            tgt_key_padding_mask=read_BT == PAD,
            memory_key_padding_mask=padded_BS,
            tgt_is_causal=True,
        )
        return functional.linear(hidden_BTD, self.tokens.weight)


def cross_entropy(logits_BLV: Tensor, target_BL: Tensor) -> Tensor:
    """Mean over what is no padding."""
    return functional.cross_entropy(logits_BLV.flatten(0, 1), target_BL.flatten(), ignore_index=PAD)


def crops(work: Work) -> Iterator[tuple[tuple[Tensor, Tensor], int]]:
    """nanoGPT's batches: crops of the whole text at random places, read from 16-bit ids."""
    text, rng = rows(work).ravel().astype(np.uint16), np.random.default_rng(work.seed)
    while True:
        starts = rng.integers(len(text) - work.length, size=work.rows)
        read, wanted = (
            torch.stack([torch.from_numpy(text[n + shift : n + shift + work.length].astype(np.int64)) for n in starts])
            for shift in (0, 1)
        )
        yield (read, wanted), work.rows * work.length


def masked_rows(work: Work) -> Iterator[tuple[tuple[Tensor, Tensor], int]]:
    """Rows in random order, 15 % masked as BERT's."""
    mask, rng = MaskedLM(MASKED_SHARE, MASK, PAD, FIRST_REGULAR, work.vocab_size, None), np.random.default_rng(1)
    loader: Any = DataLoader(list(rows(work)), work.rows, shuffle=True, drop_last=True, collate_fn=np.stack)  # type: ignore[arg-type]
    while True:
        for rows_BL in loader:
            source, target = mask(rows_BL, rng)
            yield (torch.from_numpy(source), torch.from_numpy(target)), rows_BL.size


def random_pairs(work: Work) -> Iterator[tuple[tuple[Tensor, Tensor, Tensor], int]]:
    """As many pairs as our batches hold on average, drawn at random, padded to the longest."""

    def collate(chosen: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
        ends, begin = torch.tensor([EOS]), torch.tensor([BOS])
        source = pad_sequence([torch.cat([s, ends]) for s, _ in chosen], batch_first=True, padding_value=PAD)
        read = pad_sequence([torch.cat([begin, t]) for _, t in chosen], batch_first=True, padding_value=PAD)
        wanted = pad_sequence([torch.cat([t, ends]) for _, t in chosen], batch_first=True, padding_value=PAD)
        return source, read, wanted

    data = [(torch.from_numpy(source), torch.from_numpy(target)) for source, target in zip(*pairs(work), strict=True)]
    loader: Any = DataLoader(data, work.rows, shuffle=True, collate_fn=collate)  # type: ignore[arg-type]
    while True:
        for batch in loader:
            yield batch, int((batch[2] != PAD).sum())


def train_decoder(model: nn.Module, work: Work, clock: Clock) -> None:
    """A language model on random crops."""
    plain_loop(model, work, clock, crops(work), lambda batch: cross_entropy(model(batch[0]), batch[1]))


def train_masked(model: nn.Module, work: Work, clock: Clock) -> None:
    """A masked language model, scores of the vocabulary at every position."""
    plain_loop(model, work, clock, masked_rows(work), lambda batch: cross_entropy(model(batch[0]), batch[1]))


def train_pairs(model: nn.Module, work: Work, clock: Clock) -> None:
    """Pairs in random batches."""
    plain_loop(model, work, clock, random_pairs(work), lambda batch: cross_entropy(model(*batch[:2]), batch[2]))


def make_x_transformer(work: Work) -> nn.Module:
    """A TransformerWrapper with fused attention; for `decoder` with the parts of Llama."""
    from x_transformers import Decoder, Encoder, TransformerWrapper  # type: ignore[import-not-found, unused-ignore]

    width: dict[str, Any] = {"dim": work.d_model, "depth": work.layers, "heads": work.heads, "attn_flash": True}
    width |= {"attn_dim_head": work.d_model // work.heads, "ff_mult": work.d_ff / work.d_model}
    llama = {"rotary_pos_emb": True, "use_rmsnorm": True, "ff_swish": True, "ff_glu": True, "ff_no_bias": True}
    decodes = work.kind == "decoder"
    layers = Decoder(**(width | llama | {"ff_mult": work.gated_d_ff / work.d_model})) if decodes else Encoder(**width)
    return TransformerWrapper(
        num_tokens=work.vocab_size,
        max_seq_len=work.length,
        attn_layers=layers,
        tie_embedding=True,
        use_abs_pos_emb=not decodes,
    )


NANOGPT = Contestant("nanoGPT-style loop", GPT, train_decoder)
TORCH_DECODER = Contestant("torch.nn.TransformerEncoder, causal", TorchDecoder, train_decoder)
TORCH_PAIRS = Contestant("torch.nn.Transformer, random batches", TorchPairs, train_pairs)
X_DECODER = Contestant("x-transformers", make_x_transformer, train_decoder, ("x-transformers",))
X_MASKED = Contestant("x-transformers", make_x_transformer, train_masked, ("x-transformers",))
