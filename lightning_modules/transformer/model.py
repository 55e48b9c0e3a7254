"""The three architectures, from the same blocks: encoder, decoder, and both together (section 3.1, figure 1).

Each gives hidden vectors; `logits` turns those into scores. The head is apart from `forward`, so that training applies
it only where something is to be predicted.
"""

import torch
from torch import Tensor, nn

from lightning_modules.transformer.attention import LayerCache
from lightning_modules.transformer.config import TransformerConfig
from lightning_modules.transformer.embeddings import TokenEmbedding, make_embedding
from lightning_modules.transformer.initialization import initialize
from lightning_modules.transformer.layers import OutputHead
from lightning_modules.transformer.masks import Visibility
from lightning_modules.transformer.stack import Stack
from lightning_modules.transformer.stepping import DecodingState, advance


class Transformer(nn.Module):
    """What the three have in common: configuration, embedding, output head."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = make_embedding(config)
        self.head = OutputHead(config)

    def embed(self, ids_BL: Tensor) -> Tensor:
        """Ids → embeddings (B, L, D), × √d_model where the configuration says so."""
        x_BLD = self.embedding(ids_BL)
        return x_BLD * self.config.d_model**0.5 if self.config.scale_embeddings else x_BLD

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Hidden vectors (…, D) → scores of the tokens (…, V)."""
        return self.head(hidden_ND, self.tied)

    def cross_entropy(self, hidden_ND: Tensor, target_N: Tensor, label_smoothing: float) -> Tensor:
        """Sum of the cross-entropies of `logits` against the targets, in nats; faster, and in less memory."""
        return self.head.cross_entropy(hidden_ND, self.tied, target_N, label_smoothing)

    @property
    def tied(self) -> nn.Parameter | None:
        """The embedding matrix, where it is the output's, too."""
        tied = self.config.tied_output and isinstance(self.embedding, TokenEmbedding)
        return self.embedding.weight_VD if tied else None  # type: ignore[return-value]


class Encoder(Transformer):
    """Reads in both directions: masked language models, span reading, classification (arXiv:1810.04805)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.types = nn.Embedding(config.token_types, config.d_model) if config.token_types else None
        self.encoder = Stack(config, config.encoder_layers, causal=False, cross=False)
        initialize(self)

    def forward(
        self,
        source_BS: Tensor,
        real_BS: Tensor | None = None,
        documents_BS: Tensor | None = None,
        types_BS: Tensor | None = None,
        columns_BM: Tensor | None = None,
    ) -> Tensor:
        """Ids → hidden vectors (B, S, D), or (B, M, D) of the given `columns`: what is predicted needs no others.

        `real` is true where the source is not padding; None where nothing is. `documents` numbers the documents packed
        into a row. `types` are the segments (0 everywhere if not given).
        """
        x_BSD = self.embed(source_BS)
        if self.types is not None:
            x_BSD = x_BSD + self.types(torch.zeros_like(source_BS) if types_BS is None else types_BS)
        return self.encoder(x_BSD, real_BS=real_BS, documents_BL=documents_BS, columns_BM=columns_BM)


class Decoder(Transformer):
    """Reads and writes one sequence from left to right: language models (Radford et al. 2019)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.decoder = Stack(config, config.decoder_layers, causal=True, cross=False)
        initialize(self)

    def forward(
        self,
        source_BS: Tensor,
        target_BT: Tensor,
        real_BS: Tensor | None = None,
        documents_BL: Tensor | None = None,
    ) -> Tensor:
        """Source and shifted target ids, one after the other → hidden vectors (B, T, D) of the target.

        The source may be empty (S = 0). Its padding, false in `real`, stands at its beginning, so that it meets the
        target. `documents` numbers the documents packed into a row of S + T columns.
        """
        if real_BS is not None:
            real_BS = torch.cat([real_BS, torch.ones_like(target_BT, dtype=torch.bool)], dim=1)
        source, end = source_BS.shape[1], source_BS.shape[1] + target_BT.shape[1]
        of_target_BT = torch.arange(source, end, device=source_BS.device).expand(target_BT.shape)
        return self.decoder(
            self.embed(torch.cat([source_BS, target_BT], dim=1)),
            real_BS=real_BS,
            documents_BL=documents_BL,
            prefix=source if self.config.bidirectional_prefix else 0,
            columns_BM=of_target_BT if source else None,
        )

    def begin(self, source_BS: Tensor, real_BS: Tensor | None = None) -> DecodingState:
        """Reads the source; `step` goes on from there."""
        state = DecodingState([LayerCache() for _ in self.decoder.blocks], real_BS=real_BS)
        if source_BS.shape[1]:
            prefix = source_BS.shape[1] if self.config.bidirectional_prefix else 0
            nothing_B0 = source_BS[:, :0]  # all that is wanted is in the caches
            self.decoder(
                self.embed(source_BS), real_BS=real_BS, caches=state.caches, prefix=prefix, columns_BM=nothing_B0
            )
            state.start = source_BS.shape[1]
        return state

    def step(self, target_BT: Tensor, state: DecodingState) -> Tensor:
        """The next tokens → their hidden vectors (B, T, D)."""
        if state.real_BS is not None:
            state.real_BS = torch.cat([state.real_BS, torch.ones_like(target_BT, dtype=torch.bool)], dim=1)
        hidden_BTD = self.decoder(self.embed(target_BT), real_BS=state.real_BS, caches=state.caches, start=state.start)
        state.start += target_BT.shape[1]
        return hidden_BTD

    def step_beams(self, last_BW: Tensor, state: DecodingState) -> Tensor:
        """The newest token of each beam of each row → their hidden vectors (B, W, D); see `stepping`."""
        return advance(self.decoder, self.embed(last_BW), state)


class EncoderDecoder(Transformer):
    """Reads a source in both directions, writes a target from left to right: the 2017 paper's."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.encoder = Stack(config, config.encoder_layers, causal=False, cross=False)
        self.decoder = Stack(config, config.decoder_layers, causal=True, cross=True)
        initialize(self)

    def forward(
        self,
        source_BS: Tensor,
        target_BT: Tensor,
        real_BS: Tensor | None = None,
        documents: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Source and shifted target ids → hidden vectors (B, T, D) that predict the next target token.

        `real` is true where the source is not padding; None where nothing is. Padding at the end of the target needs no
        mask: no earlier position sees it. `documents` numbers those packed into a row, of source (B, S) and target.
        """
        source_documents, target_documents = documents or (None, None)
        memory_BSD = self.encode(source_BS, real_BS, source_documents)
        x_BTD = self.embed(target_BT)
        if documents is None:
            memory_visibility = self._memory_visibility(real_BS)
        else:
            memory_visibility = self.decoder.sees_of_memory(x_BTD, memory_BSD, documents, real_BS)
        return self.decoder(
            x_BTD, documents_BL=target_documents, memory_BSD=memory_BSD, memory_visibility=memory_visibility
        )

    def encode(self, source_BS: Tensor, real_BS: Tensor | None = None, documents_BS: Tensor | None = None) -> Tensor:
        """Source ids → memory (B, S, D)."""
        return self.encoder(self.embed(source_BS), real_BS=real_BS, documents_BL=documents_BS)

    def begin(self, source_BS: Tensor, real_BS: Tensor | None = None) -> DecodingState:
        """Reads the source; `step` writes from there."""
        caches = [LayerCache() for _ in self.decoder.blocks]
        return DecodingState(caches, memory_BSD=self.encode(source_BS, real_BS), real_BS=real_BS)

    def step(self, target_BT: Tensor, state: DecodingState) -> Tensor:
        """The next tokens → their hidden vectors (B, T, D)."""
        hidden_BTD = self.decoder(
            self.embed(target_BT),
            memory_BSD=state.memory_BSD,
            memory_visibility=self._memory_visibility(state.real_BS),
            caches=state.caches,
            start=state.start,
        )
        state.start += target_BT.shape[1]
        return hidden_BTD

    def step_beams(self, last_BW: Tensor, state: DecodingState) -> Tensor:
        """The newest token of each beam of each row → their hidden vectors (B, W, D); see `stepping`."""
        return advance(self.decoder, self.embed(last_BW), state, self._memory_visibility(state.real_BS))

    @staticmethod
    def _memory_visibility(real_BS: Tensor | None) -> Visibility:
        return Visibility(None if real_BS is None else real_BS[:, None, None, :])


_ARCHITECTURES = {"encoder": Encoder, "decoder": Decoder, "encoder_decoder": EncoderDecoder}


def make_model(config: TransformerConfig) -> Encoder | Decoder | EncoderDecoder:
    """A model of `config.architecture` with freshly drawn weights."""
    return _ARCHITECTURES[config.architecture](config)  # type: ignore[return-value]


def count_parameters(model: nn.Module) -> int:
    """Parameters of a model, each tied one once."""
    return sum(parameter.numel() for parameter in model.parameters())


def shift_right(target_BT: Tensor, bos_id: int) -> Tensor:
    """What the decoder reads while it predicts `target`: <s>, then all but the last token."""
    return torch.cat([torch.full_like(target_BT[:, :1], bos_id), target_BT[:, :-1]], dim=1)


def lay_out_for_steps(model: nn.Module) -> None:
    """Lays the matrices of linear layers and of the output out by columns: the few rows of a step multiply some 10 %
    faster on a CPU, 25 % with the output's.

    Values and shapes stay as they are. For models that only answer: an optimiser wants them as they were made, and a
    tied embedding is read more slowly (by 1.5 µs a token, where the output gains 400 µs a step).
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            _by_columns(module.weight)
        elif isinstance(module, Transformer):
            output_VD = module.head.weight_VD if module.tied is None else module.tied
            if output_VD is not None:
                _by_columns(output_VD)


def _by_columns(matrix: Tensor) -> None:
    matrix.data = matrix.data.t().contiguous().t()
