"""Beams as columns of a row: each goes on as if its own text alone had been read, wherever it branched off."""

from typing import Any

import pytest
import torch
from searching import SHAPES, sources, tensors
from tiny import VOCAB_SIZE, lively

from lightning_modules.transformer.model import lay_out_for_steps


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("padded", [True, False])
def test_beams_that_branch_and_rows_that_leave_are_as_if_alone(shape: str, padded: bool) -> None:
    ours: Any = lively(**SHAPES[shape])
    texts = sources(5) if padded else [text[:4] for text in sources(5)]
    source_BS, real_BS = tensors(texts, ours)
    assert (real_BS is not None) == padded
    torch.manual_seed(0)
    rows = torch.arange(5)
    path_BWT = torch.full((5, 1, 1), ours.config.bos_id)
    with torch.no_grad():
        state = ours.begin(source_BS, real_BS)
        for width in (1, 3, 2, 5, 5, 1, 4, 4, 4, 4, *[4] * 12):
            if path_BWT.shape[-1] > 1 or width > 1:
                parents_BW = torch.randint(path_BWT.shape[1], (len(rows), width))
                state.branch(parents_BW)
                path_BWT = path_BWT.gather(1, parents_BW[..., None].expand(-1, -1, path_BWT.shape[-1]))
                path_BWT = torch.cat([path_BWT, torch.randint(5, VOCAB_SIZE, (len(rows), width, 1))], dim=-1)
            hidden_BWD = ours.step_beams(path_BWT[..., -1], state)
            alone_BWD = torch.stack(
                [
                    ours(source_BS[rows], path_BWT[:, beam], None if real_BS is None else real_BS[rows])[:, -1]
                    for beam in range(width)
                ],
                dim=1,
            )
            torch.testing.assert_close(hidden_BWD, alone_BWD, atol=5e-5, rtol=1e-4)
            if path_BWT.shape[-1] in (2, 6, 15):
                kept = torch.randperm(len(rows))[: len(rows) - 1]
                state.keep(kept)
                rows, path_BWT = rows[kept], path_BWT[kept]


@pytest.mark.parametrize("padded", [True, False])
def test_when_beams_branch_nothing_that_was_cached_is_copied(padded: bool) -> None:
    """Of the encoder's side there is one copy for all beams of a row, and it lies where it was first written."""
    ours = lively()
    texts = sources(5) if padded else [text[:4] for text in sources(5)]
    source_BS, real_BS = tensors(texts, ours)
    with torch.no_grad():
        state = ours.begin(source_BS, real_BS)
        ours.step_beams(torch.full((5, 1), ours.config.bos_id), state)

        def cross() -> list[tuple[int, tuple[int, ...]]]:
            sides = [side for cache in state.caches for side in (cache.cross.key_BHLK, cache.cross.value_BHLK)]
            return [(side.data_ptr(), tuple(side.shape)) for side in sides]

        first = cross()
        assert len({place for place, _ in first}) == 2 * ours.config.decoder_layers
        assert all(shape[0] == 5 and shape[2] == source_BS.shape[1] for _, shape in first)
        for width in (4, 4, 2, 4):
            own = [cache.own.key_BHLK.data_ptr() for cache in state.caches]
            state.branch(torch.randint(1 if state.start == 1 else 2, (5, width)))
            assert [cache.own.key_BHLK.data_ptr() for cache in state.caches] == own
            ours.step_beams(torch.randint(5, VOCAB_SIZE, (5, width)), state)
            assert cross() == first


@pytest.mark.parametrize("shape", ["encoder-decoder", "decoder, like Llama"])
def test_laid_out_for_steps_a_model_computes_the_same_and_keeps_its_weights(shape: str) -> None:
    ours, other = lively(**SHAPES[shape]), lively(**SHAPES[shape])
    lay_out_for_steps(other)
    for name, weight in ours.state_dict().items():
        assert torch.equal(weight, other.state_dict()[name])
    source_BS, real_BS = tensors(sources(5), ours)
    first_B1 = torch.ones(5, 1, dtype=torch.long)
    with torch.no_grad():
        steps = [made.step_beams(first_B1, made.begin(source_BS, real_BS)) for made in (ours, other)]
    torch.testing.assert_close(*steps)
