"""Cross-entropy over real target positions: the vocabulary head is never applied to padding."""

from torch import Tensor
from torch.nn import functional

from lightning_modules.transformer.model import EncoderDecoder, shift_right


def sequence_loss(
    model: EncoderDecoder, source_BS: Tensor, target_BT: Tensor, mask_B11S: Tensor | None, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """(Sum of the cross-entropies in nats, number of real target tokens), both without a gradient-averaging factor."""
    config = model.config
    hidden_BTD = model(source_BS, shift_right(target_BT, config.bos_id), mask_B11S)
    real_BT = target_BT != config.pad_id
    targets_N = target_BT[real_BT]
    logits_NV = model.logits(hidden_BTD[real_BT])
    loss = functional.cross_entropy(logits_NV.float(), targets_N, reduction="sum", label_smoothing=label_smoothing)
    return loss, real_BT.sum()
