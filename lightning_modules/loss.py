"""Cross-entropy over what is to be predicted: the vocabulary head is never applied to padding or to unmasked tokens."""

import torch
from torch import Tensor
from torch.nn import functional

from lightning_modules.batching import NO_SPAN, Batch
from lightning_modules.model_folder import Model
from lightning_modules.transformer.heads import Classifier, SpanReader
from lightning_modules.transformer.model import Decoder, Encoder, EncoderDecoder, shift_right


def batch_loss(model: Model, batch: Batch, label_smoothing: float) -> tuple[Tensor, Tensor]:
    """(Sum of the cross-entropies in nats, number of predictions), both without a gradient-averaging factor."""
    target_BT = batch.target_BT
    if isinstance(model, SpanReader | Classifier):
        # (B, 2, S) of columns, or (B, classes). Columns are not smoothed: padding has a score of -∞ among them.
        score_NC = model(batch.source_BS, batch.real_BS).float().flatten(0, -2)
        smoothing = label_smoothing if isinstance(model, Classifier) else 0.0
        loss = functional.cross_entropy(
            score_NC, target_BT.flatten(), reduction="sum", ignore_index=NO_SPAN, label_smoothing=smoothing
        )
        return loss, (target_BT != NO_SPAN).sum()
    if isinstance(model, Encoder):
        columns_BM = _predicted_columns(target_BT != model.config.pad_id)
        target_BT = target_BT.gather(1, columns_BM)
        documents_BS = None if batch.documents is None else batch.documents[0]
        hidden_BTD = model(batch.source_BS, batch.real_BS, documents_BS, columns_BM=columns_BM)
    else:
        hidden_BTD = _hidden(model, batch)
    predicted_BT = target_BT != model.config.pad_id
    count = predicted_BT.sum()
    if int(count) == target_BT.numel():
        hidden_ND, target_N = hidden_BTD.flatten(0, 1), target_BT.flatten()
    else:
        hidden_ND, target_N = hidden_BTD[predicted_BT], target_BT[predicted_BT]
    return model.cross_entropy(hidden_ND, target_N, label_smoothing), count


def _predicted_columns(predicted_BS: Tensor) -> Tensor:
    """Those of each row first, in their order, then others, for as many as the row with the most of them has."""
    most = max(1, int(predicted_BS.sum(dim=1).max()))
    return predicted_BS.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]


def _hidden(model: Decoder | EncoderDecoder, batch: Batch) -> Tensor:
    """Hidden vectors (B, T, D) of the columns of the target."""
    source_BS, target_BT, real_BS, documents = batch.source_BS, batch.target_BT, batch.real_BS, batch.documents
    read_BT = shift_right(target_BT, model.config.bos_id)
    if documents is not None:  # each document begins with <s>, as one by itself does
        begins_BT = documents[1][:, 1:] != documents[1][:, :-1]
        read_BT[:, 1:].masked_fill_(begins_BT, model.config.bos_id)
    if isinstance(model, Decoder):
        return model(source_BS, read_BT, real_BS, None if documents is None else torch.cat(documents, dim=1))
    return model(source_BS, read_BT, real_BS, documents)
