"""The loss: a plain cross-entropy of what is to be predicted, in every architecture, whatever the padding."""

from typing import Any

import numpy as np
import pytest
import torch
from tiny import batch, batch_for, model, reader
from torch import Tensor
from torch.nn import functional

from lightning_modules.batching import NO_SPAN, Batch, make_batch
from lightning_modules.loss import batch_loss
from lightning_modules.transformer.heads import Classifier

SOURCES, TARGETS = [9, 4, 1], [3, 7, 1]
SHAPES: dict[str, dict[str, Any]] = {
    "encoder-decoder": {},
    "encoder-decoder, post-norm": {"norm": "post"},
    "encoder-decoder, relative": {"positions": "relative"},
    "decoder, sinusoidal": {"architecture": "decoder"},
    "decoder, learned": {"architecture": "decoder", "positions": "learned"},
    "decoder, rotary": {"architecture": "decoder", "positions": "rotary", "key_value_heads": 2},
    "decoder, alibi": {"architecture": "decoder", "positions": "alibi"},
    "decoder, relative": {"architecture": "decoder", "positions": "relative"},
    "decoder, window": {"architecture": "decoder", "window": 3},
    "decoder, prefix": {"architecture": "decoder", "bidirectional_prefix": True},
    "decoder, prefix, alibi": {"architecture": "decoder", "bidirectional_prefix": True, "positions": "alibi"},
    "encoder": {"architecture": "encoder", "output_transform": True, "output_bias": True},
    "encoder, alibi": {"architecture": "encoder", "positions": "alibi"},
}


def log_probabilities(ours: Any, source: list[int], target: list[int]) -> Tensor:
    """(T, V) for one text alone: no batch, no padding, no mask."""
    source_1S, target_1T = torch.tensor([source], dtype=torch.long), torch.tensor([target])
    if ours.config.architecture == "encoder":
        hidden_1TD = ours(source_1S)
    else:
        hidden_1TD = ours(source_1S, torch.tensor([[ours.config.bos_id, *target_1T[0, :-1]]]))
    logits_TV = ours.logits(hidden_1TD)[0]
    return logits_TV - logits_TV.logsumexp(dim=-1, keepdim=True)


def definition(ours: Any, made: Batch, smoothing: float) -> tuple[Tensor, int]:
    """The mixture of what is to be predicted and the uniform distribution, against the model's, row by row."""
    total, count = torch.zeros(()), 0
    for source_S, target_T in zip(made.source_BS, made.target_BT, strict=True):
        source = source_S[source_S != 0].tolist()
        reads = ours.config.architecture == "encoder"
        target = (target_T[: len(source)] if reads else target_T[target_T != 0]).tolist()
        scores = log_probabilities(ours, source, target)
        for score_V, token in zip(scores, target, strict=True):
            if token:
                total = total - (1 - smoothing) * score_V[token] - smoothing * score_V.mean()
                count += 1
    return total, count


def batch_of(ours: Any) -> Batch:
    if ours.config.architecture != "encoder":
        return batch_for(ours, 1, SOURCES, TARGETS)
    made = batch_for(ours, 1, SOURCES, SOURCES)
    made.target_BT[0, 1:8] = 0  # what is not to be predicted
    made.target_BT[1, :2] = 0
    return made


def gradients(ours: Any, loss: Tensor) -> list[Tensor]:
    """Of all weights that learn; zeros where the loss does not depend on one."""
    weights = [weight for weight in ours.parameters() if weight.requires_grad]
    return list(torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True))


@pytest.mark.parametrize("shape", SHAPES)
def test_it_and_its_gradient_are_those_of_the_rows_taken_one_by_one(shape: str) -> None:
    ours = model(**SHAPES[shape])
    made = batch_of(ours)
    assert made.real_BS is not None
    for smoothing in (0.0, 0.1):
        loss, tokens = batch_loss(ours, made, smoothing)
        expected, count = definition(ours, made, smoothing)
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)
        assert int(tokens) == count == int((made.target_BT != 0).sum())
    for one, other in zip(gradients(ours, loss), gradients(ours, expected), strict=True):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("shape", ["decoder, learned", "decoder, rotary", "decoder, prefix"])
def test_a_decoder_needs_no_source(shape: str) -> None:
    ours = model(**SHAPES[shape])
    _, target_BT = batch(1, SOURCES, TARGETS)
    made = make_batch(target_BT[:, :0].numpy(), target_BT.numpy(), ours.config)
    loss, tokens = batch_loss(ours, made, 0.1)
    torch.testing.assert_close(loss, definition(ours, made, 0.1)[0], rtol=1e-5, atol=1e-4)
    assert int(tokens) == sum(TARGETS)


@pytest.mark.parametrize("positions", ["sinusoidal", "learned", "alibi"])
def test_a_span_has_the_cross_entropy_of_its_first_and_of_its_last_column(positions: str) -> None:
    ours, spans = reader(positions=positions), [(2, 8), (0, 3), (0, 0)]
    source_BS, _ = batch(1, SOURCES, [1, 1, 1])
    made = make_batch(source_BS.numpy(), np.array(spans), ours.config)
    loss, predictions = batch_loss(ours, made, 0.0)
    expected = torch.zeros(())
    for source_S, length, span in zip(source_BS, SOURCES, spans, strict=True):
        score_2S = ours.ends(ours.encoder(source_S[None, :length]))[0].T
        expected = expected - sum(score_2S.log_softmax(-1)[side, column] for side, column in enumerate(span))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)
    assert int(predictions) == 6
    for one, other in zip(gradients(ours, loss), gradients(ours, expected), strict=True):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_class_has_the_cross_entropy_of_its_score_among_all(smoothing: float) -> None:
    ours, classes = Classifier(model(architecture="encoder"), "abcd").eval(), [2, NO_SPAN, 0]
    torch.nn.init.normal_(ours.classes.weight)
    source_BS, _ = batch(1, SOURCES, [1, 1, 1])
    made = make_batch(source_BS.numpy(), np.array(classes)[:, None], ours.config)
    loss, predictions = batch_loss(ours, made, smoothing)
    expected = torch.zeros(())
    for source_S, length, number in zip(source_BS, SOURCES, classes, strict=True):
        if number != NO_SPAN:
            shares = ours(source_S[None, :length])[0].log_softmax(-1)
            expected = expected - (1 - smoothing) * shares[number] - smoothing * shares.mean()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)
    assert int(predictions) == 2
    for one, other in zip(gradients(ours, loss), gradients(ours, expected), strict=True):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("architecture", ["encoder", "decoder", "encoder_decoder", "reader"])
def test_it_is_reckoned_in_float32_where_the_model_is_not(architecture: str) -> None:
    ours = (reader() if architecture == "reader" else model(architecture=architecture)).bfloat16()
    made = batch_for(ours, 1, [6, 4], [6, 4])
    if architecture == "reader":
        made = made._replace(target_BT=torch.tensor([[1, 5], [0, 3]]))
    loss, _ = batch_loss(ours, made, 0.0)
    assert loss.dtype == torch.float32
    assert loss.isfinite()


def packed(ours: Any) -> tuple[Batch, list[Batch]]:
    """Three texts packed into one row, with padding behind them; and each by itself."""
    sources, targets = [5, 3, 4], [2, 4, 3]
    if ours.config.architecture == "encoder":
        targets = sources
    elif ours.config.architecture == "decoder":
        sources = [0, 0, 0]
    sides, numbers = batch(3, [sum(sources)], [sum(targets)]), []
    for ids, lengths in zip(sides, (sources, targets), strict=True):
        numbers.append(torch.arange(1, 4).repeat_interleave(torch.tensor(lengths))[None])
        assert numbers[-1].shape == ids.shape
    if ours.config.architecture == "encoder":
        sides[1][0, ::2] = 0  # what is not to be predicted
    alone = []
    for number in (1, 2, 3):
        source, target = (ids[here == number][None].numpy() for ids, here in zip(sides, numbers, strict=True))
        alone.append(make_batch(source, target, ours.config))
    behind = [(0, 2 if ids.shape[1] else 0) for ids in sides]
    row = [functional.pad(ids, more).numpy() for ids, more in zip(sides, behind, strict=True)]
    documents = [functional.pad(here, more).numpy() for here, more in zip(numbers, behind, strict=True)]
    return make_batch(row[0], row[1], ours.config, documents=(documents[0], documents[1])), alone


@pytest.mark.parametrize("architecture", ["encoder", "decoder", "encoder_decoder"])
@pytest.mark.parametrize("positions", ["sinusoidal", "rotary", "relative"])
def test_documents_packed_into_a_row_have_the_loss_of_each_by_itself(architecture: str, positions: str) -> None:
    ours = model(architecture=architecture, positions=positions)
    made, alone = packed(ours)
    assert made.documents is not None
    loss, tokens = batch_loss(ours, made, 0.1)
    losses = [batch_loss(ours, one, 0.1) for one in alone]
    torch.testing.assert_close(loss, torch.stack([nats for nats, _ in losses]).sum(), rtol=1e-5, atol=1e-4)
    assert int(tokens) == sum(int(count) for _, count in losses)
    assert not torch.isclose(batch_loss(ours, made._replace(documents=None), 0.1)[0], loss, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["encoder", "decoder", "encoder_decoder", "reader", "classifier"])
def test_a_batch_in_which_nothing_counts_has_a_loss_and_gradients_of_zero(architecture: str) -> None:
    """A rank without a record of its own takes part in the step with one that does not count."""
    if architecture == "classifier":
        ours: Any = Classifier(model(architecture="encoder"), "abc")
    else:
        ours = reader() if architecture == "reader" else model(architecture=architecture)
    made = batch_for(ours, 1, [6, 4], [6, 4])
    nothing = {"reader": torch.full((2, 2), NO_SPAN), "classifier": torch.full((2, 1), NO_SPAN)}.get(
        architecture, torch.zeros_like(made.target_BT)
    )
    loss, tokens = batch_loss(ours, made._replace(target_BT=nothing), 0.0)
    assert loss.item() == int(tokens) == 0
    loss.backward()
    for parameter in ours.parameters():
        if parameter.requires_grad:  # each has one: DDP waits for all
            assert parameter.grad is not None
            assert not parameter.grad.any()
