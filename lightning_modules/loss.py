"""Cross-entropy over what is to be predicted: the vocabulary head is never applied to padding or to unmasked tokens."""

import torch
from torch import Tensor
from torch.nn import functional

from lightning_modules.batching import NO_SPAN, Batch
from lightning_modules.model_folder import Model
from lightning_modules.transformer.heads import Classifier, SpanReader
from lightning_modules.transformer.model import Decoder, Encoder, shift_right


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
    hidden_BTD = _hidden(model, batch)
    predicted_BT = target_BT != model.config.pad_id
    count = predicted_BT.sum()
    if int(count) == target_BT.numel():
        hidden_ND, target_N = hidden_BTD.flatten(0, 1), target_BT.flatten()
    else:
        hidden_ND, target_N = hidden_BTD[predicted_BT], target_BT[predicted_BT]
    return model.cross_entropy(hidden_ND, target_N, label_smoothing), count


def _hidden(model: Model, batch: Batch) -> Tensor:
    """Hidden vectors (B, T, D) of the columns of the target."""
    source_BS, target_BT, real_BS, documents = batch.source_BS, batch.target_BT, batch.real_BS, batch.documents
    if isinstance(model, Encoder):
        return model(source_BS, real_BS, None if documents is None else documents[0])
    read_BT = shift_right(target_BT, model.config.bos_id)
    if documents is not None:  # each document begins with <s>, as one by itself does
        begins_BT = documents[1][:, 1:] != documents[1][:, :-1]
        read_BT[:, 1:].masked_fill_(begins_BT, model.config.bos_id)
    if isinstance(model, Decoder):
        return model(source_BS, read_BT, real_BS, None if documents is None else torch.cat(documents, dim=1))
    return model(source_BS, read_BT, real_BS, documents)
