"""The loss: a plain cross-entropy over real target tokens, whatever the padding."""

import pytest
import torch
from tiny import VOCAB_SIZE, batch, model, source_mask
from torch.nn import functional

from lightning_modules.loss import sequence_loss
from lightning_modules.transformer.model import shift_right

SOURCES, TARGETS = [9, 4, 1], [3, 7, 1]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_it_is_the_cross_entropy_of_all_positions_with_padding_ignored(smoothing: float) -> None:
    ours = model()
    source_BS, target_BT = batch(1, SOURCES, TARGETS)
    mask = source_mask(source_BS)
    loss, tokens = sequence_loss(ours, source_BS, target_BT, mask, smoothing)
    everywhere = ours.logits(ours(source_BS, shift_right(target_BT, 1), mask)).flatten(0, 1)
    expected = functional.cross_entropy(
        everywhere, target_BT.flatten(), reduction="sum", ignore_index=0, label_smoothing=smoothing
    )
    torch.testing.assert_close(loss, expected)
    assert int(tokens) == sum(TARGETS)
    got, wanted = (torch.autograd.grad(value, list(ours.parameters())) for value in (loss, expected))
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_it_is_the_sum_of_the_rows_taken_one_by_one() -> None:
    ours = model()
    source_BS, target_BT = batch(1, SOURCES, TARGETS)
    together, _ = sequence_loss(ours, source_BS, target_BT, source_mask(source_BS), 0.1)
    alone = [
        sequence_loss(ours, source_BS[i : i + 1, :s], target_BT[i : i + 1, :t], None, 0.1)[0]
        for i, (s, t) in enumerate(zip(SOURCES, TARGETS, strict=True))
    ]
    torch.testing.assert_close(together, torch.stack(alone).sum(), rtol=1e-5, atol=1e-4)


def test_label_smoothing_is_a_mixture_with_the_uniform_distribution() -> None:
    ours = model()
    source_BS, target_BT = batch(1, SOURCES, TARGETS)
    mask, real = source_mask(source_BS), target_BT != 0
    log_probabilities = ours.logits(ours(source_BS, shift_right(target_BT, 1), mask))[real].log_softmax(-1)
    wanted = torch.full_like(log_probabilities, 0.2 / VOCAB_SIZE)
    wanted[torch.arange(int(real.sum())), target_BT[real]] += 0.8
    loss, _ = sequence_loss(ours, source_BS, target_BT, mask, 0.2)
    torch.testing.assert_close(loss, -(wanted * log_probabilities).sum())


def test_it_is_reckoned_in_float32_where_the_model_is_not() -> None:
    ours = model().bfloat16()
    loss, _ = sequence_loss(ours, *batch(1, [5], [6]), None, 0.0)
    assert loss.dtype == torch.float32
    assert loss.isfinite()
