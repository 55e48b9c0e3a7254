"""Cross-entropy over what is to be predicted: the vocabulary head is never applied to padding or to unmasked tokens."""

from torch import Tensor
from torch.nn import functional

from lightning_modules.batching import Batch
from lightning_modules.model_folder import Model
from lightning_modules.transformer.heads import SpanReader
from lightning_modules.transformer.model import Encoder, shift_right


def batch_loss(model: Model, batch: Batch, label_smoothing: float) -> tuple[Tensor, Tensor]:
    """(Sum of the cross-entropies in nats, number of predictions), both without a gradient-averaging factor."""
    source_BS, target_BT, real_BS = batch
    if isinstance(model, SpanReader):
        score_B2S = model(source_BS, real_BS)
        loss = functional.cross_entropy(score_B2S.float().flatten(0, 1), target_BT.flatten(), reduction="sum")
        return loss, target_BT.new_tensor(target_BT.numel())
    if isinstance(model, Encoder):
        hidden_BTD = model(source_BS, real_BS)
    else:
        hidden_BTD = model(source_BS, shift_right(target_BT, model.config.bos_id), real_BS)
    predicted_BT = target_BT != model.config.pad_id
    logits_NV = model.logits(hidden_BTD[predicted_BT])
    loss = functional.cross_entropy(
        logits_NV.float(), target_BT[predicted_BT], reduction="sum", label_smoothing=label_smoothing
    )
    return loss, predicted_BT.sum()
