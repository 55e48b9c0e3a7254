"""Packed documents do not see one another: a row's loss is the sum of its documents', each taken alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from corruptions import corruption, denoising, masked
from tiny import EOS, FIRST_SENTINEL, VOCAB_SIZE, config, encoded, model, sentences, write_store
from torch import Tensor
from torch.nn import functional

from lightning_modules.batching import Batch
from lightning_modules.errors import PipelineError
from lightning_modules.loss import batch_loss
from lightning_modules.objectives import CausalLM, Mixture, Objective, PrefixLM
from lightning_modules.text_rows import TextRows
from lightning_modules.transformer.stack import Stack

OBJECTIVES: dict[str, Objective] = {
    "causal_lm": CausalLM(),
    "prefix_lm": PrefixLM(),
    "masked_lm": masked(0.3, ids=VOCAB_SIZE),
    "span_corruption": corruption(0.3, 2.0, sentinels=64),
    "denoising": denoising(0.3, 2.0),
    "mixture": Mixture(((corruption(0.3, 2.0, sentinels=64), 1.0), (PrefixLM(), 1.0))),
}
PACKED = [
    ("decoder", "causal_lm"),
    ("decoder", "prefix_lm"),
    ("encoder", "masked_lm"),
    ("encoder_decoder", "prefix_lm"),
    ("encoder_decoder", "span_corruption"),
    ("encoder_decoder", "denoising"),
    ("encoder_decoder", "mixture"),
]


def split_of(
    folder: Path, texts: list[list[int]], objective: Objective, packing: str = "best_fit", **changes: Any
) -> TextRows:
    return TextRows(write_store(folder, texts), config(**changes), objective, 32, 8, 4, 1, packing)


def alone(ours: Any, source_S: Tensor, target_T: Tensor) -> Tensor:
    """Nats of one document, without the others, and without a mask."""
    read_T = torch.cat([torch.tensor([ours.config.bos_id]), target_T[:-1]])
    if ours.config.architecture == "encoder":
        hidden_TD = ours(source_S[None])[0]
    elif ours.config.architecture == "encoder_decoder" and not len(source_S):  # all of it is hidden: as if padded
        hidden_TD = ours(torch.zeros(1, 1, dtype=torch.long), read_T[None], torch.zeros(1, 1, dtype=torch.bool))[0]
    else:
        hidden_TD = ours(source_S[None], read_T[None])[0]
    real_T = target_T != 0
    return functional.cross_entropy(ours.logits(hidden_TD[real_T]), target_T[real_T], reduction="sum")


def loss_apart(ours: Any, batch: Batch) -> Tensor:
    """The nats of each document of a batch, taken alone."""
    assert batch.documents is not None
    total = torch.zeros((), dtype=torch.float64)
    for row, (source_S, target_T) in enumerate(zip(batch.source_BS, batch.target_BT, strict=True)):
        of_source, of_target = (side[row] for side in batch.documents)
        real_S = source_S != 0
        for number in range(int(of_target.max()) + 1):
            chosen = of_target == number
            if (target_T[chosen] != 0).any():
                total += alone(ours, source_S[(of_source == number) & real_S], target_T[chosen])
    return total


@pytest.mark.parametrize("positions", ["sinusoidal", "learned", "rotary", "alibi", "relative"])
@pytest.mark.parametrize(("architecture", "name"), PACKED)
def test_the_loss_is_that_of_each_document_alone(tmp_path: Path, architecture: str, name: str, positions: str) -> None:
    changes: dict[str, Any] = {"architecture": architecture, "positions": positions}
    texts = [text for text in encoded(sentences()[:120]) if len(text) > 2]
    split = split_of(tmp_path, texts, OBJECTIVES[name], **changes)
    ours = model(**changes).double()
    for number in range(3):
        batch = split.training_batch(number, 0, 1)
        assert batch.documents is not None
        assert int(batch.documents[1].max()) > 1
        assert tuple(side.shape for side in batch.documents) == (batch.source_BS.shape, batch.target_BT.shape)
        with torch.no_grad():
            mixed, _ = batch_loss(ours, batch._replace(documents=None), 0.0)
            expected = loss_apart(ours, batch)
            for way in ("mask", "apart"):  # as in short rows, and as in long ones on a CPU
                for stack in (module for module in ours.modules() if isinstance(module, Stack)):
                    stack.packs_with = way
                loss, _ = batch_loss(ours, batch, 0.0)
                torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
        assert abs(mixed.item() - expected.item()) > 5e-6 * expected.item()


@pytest.mark.parametrize("name", ["span_corruption", "denoising", "mixture"])
def test_a_decoder_cannot_have_documents_apart_where_source_and_target_take_turns(tmp_path: Path, name: str) -> None:
    texts = encoded(sentences()[:60])
    with pytest.raises(PipelineError, match=r"pretrain\.packing .*pretrain\.objective causal_lm") as caught:
        split_of(tmp_path, texts, OBJECTIVES[name], architecture="decoder")
    assert "\n" not in str(caught.value)
    split_of(tmp_path / "joined", texts, OBJECTIVES[name], "joined", architecture="decoder")


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("seed", range(5))
def test_every_column_knows_its_document(name: str, seed: int) -> None:
    rng, length = np.random.default_rng(seed), 60
    tokens_BL = np.stack([rng.permutation(np.arange(100, 500))[:length] for _ in range(6)])
    documents_BL = np.cumsum(rng.random((6, length)) < 0.15, axis=1)
    documents_BL -= documents_BL[:, :1]
    objective = OBJECTIVES[name]
    source_BS, target_BT, told = objective.packed(tokens_BL, documents_BL, np.random.default_rng(seed))
    assert told is not None
    assert objective.packed(tokens_BL, None, np.random.default_rng(seed))[2] is None
    if name != "denoising":  # sentences stay in their documents, so only here something else is read
        apart = objective(tokens_BL, np.random.default_rng(seed))
        assert all(np.array_equal(a, b) for a, b in zip(apart, (source_BS, target_BT), strict=True))
    for row in range(len(tokens_BL)):
        owner = dict(zip(tokens_BL[row].tolist(), documents_BL[row].tolist(), strict=True))
        target, of_target = target_BT[row].tolist(), told[1][row].tolist()
        for number, token in enumerate(target):
            if FIRST_SENTINEL <= token < FIRST_SENTINEL + 64:  # belongs to the first token that it hides
                owner[token] = owner[target[number + 1]]
        owner[EOS] = int(documents_BL[row, -1])
        for side, numbers in ((source_BS[row].tolist(), told[0][row].tolist()), (target, of_target)):
            assert numbers == sorted(numbers)
            if name != "masked_lm":  # where tokens are replaced by others
                assert all(owner.get(token, number) == number for token, number in zip(side, numbers, strict=True))
    if name == "masked_lm":
        assert np.array_equal(told[0], documents_BL)
        assert np.array_equal(told[1], documents_BL)
