"""OpenNMT-py's Transformer (Klein et al. 2017, arXiv:1701.02810) in a plain loop over our batches.

    pip install --no-deps OpenNMT-py==3.0.4 configargparse pyonmttok waitress flask rapidfuzz tensorboard

3.0.4 is the newest that does not ask for a torch below 2.3. Its own batches, pooled by length up to so many tokens, are
much like ours; its trainer reads them through a tokenizer, in processes, and is left out.
"""

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peer_ours import length_batches
from benchmarks.peer_tools import BOS, PAD, Clock, Contestant, Work, plain_loop
from benchmarks.peer_torch import cross_entropy


class OpenNMT(nn.Module):
    """Its encoder and decoder, norms before the parts, sinusoidal positions; one matrix embeds and scores."""

    def __init__(self, work: Work) -> None:
        from onmt.decoders.transformer import TransformerDecoder  # type: ignore[import-not-found, unused-ignore]
        from onmt.encoders.transformer import TransformerEncoder  # type: ignore[import-not-found, unused-ignore]
        from onmt.models import NMTModel  # type: ignore[import-not-found, unused-ignore]
        from onmt.modules import Embeddings  # type: ignore[import-not-found, unused-ignore]

        super().__init__()
        self.embeddings = Embeddings(work.d_model, work.vocab_size, PAD, position_encoding=True)
        shape: dict[str, Any] = {
            "num_layers": work.layers,
            "d_model": work.d_model,
            "heads": work.heads,
            "d_ff": work.d_ff,
            "dropout": 0.0,
            "attention_dropout": 0.0,
            "max_relative_positions": 0,
            "add_qkvbias": True,
        }
        alone: dict[str, Any] = {
            "copy_attn": False,
            "self_attn_type": "scaled-dot",
            "aan_useffn": False,
            "full_context_alignment": False,
            "alignment_layer": -1,
            "alignment_heads": 0,
        }
        self.body: Any = NMTModel(
            TransformerEncoder(embeddings=self.embeddings, **shape),
            TransformerDecoder(embeddings=self.embeddings, **shape, **alone),
        )
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
        nn.init.normal_(self.embeddings.word_lut.weight, std=work.d_model**-0.5)

    def forward(self, source_BS: Tensor, target_BT: Tensor) -> Tensor:
        """Logits (B, T, V) of the target, which it reads shifted by one."""
        begun = torch.cat([torch.full_like(target_BT[:, :1], BOS), target_BT], dim=1)
        lengths_B = (source_BS != PAD).sum(1)
        hidden_BTD, _ = self.body(source_BS[:, :, None], begun[:, :, None], lengths_B)  # it drops the last one itself
        return nn.functional.linear(hidden_BTD, self.embeddings.word_lut.weight)


def train(model: nn.Module, work: Work, clock: Clock) -> None:
    """As BART in peer_huggingface: the vocabulary is scored at every position."""
    plain_loop(
        model,
        work,
        clock,
        length_batches(work),
        lambda batch: cross_entropy(model(batch.source_BS, batch.target_BT), batch.target_BT),
    )


OPENNMT = Contestant("OpenNMT-py, plain loop, our batches", OpenNMT, train, ("onmt",))
