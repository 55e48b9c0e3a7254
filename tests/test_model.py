"""The three architectures: padding, the order of time, decoding step by step, dropout, low precision."""

from typing import Any, get_args

import pytest
import torch
from tiny import VOCAB_SIZE, batch, model
from torch import Tensor

from lightning_modules.transformer.config import Positions
from lightning_modules.transformer.model import count_parameters, shift_right

SCHEMES = get_args(Positions)
LENGTHS = (5, 2, 7)
OPTIONS: list[dict[str, Any]] = [
    {},
    {"window": 3, "key_value_heads": 2},
    {"bidirectional_prefix": True, "window": 4, "key_value_heads": 1, "qk_norm": True, "norm": "post"},
]


def made_of(architecture: str, **changes: Any) -> Any:
    if architecture != "decoder":
        changes.pop("bidirectional_prefix", None)
    return model(5, architecture=architecture, **changes)


def padded(side: str, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Sources of several lengths, padded on one side, and what of them is real."""
    source_BS, _ = batch(seed, LENGTHS, (1,))
    if side == "left":
        source_BS = torch.stack([row.roll(7 - length) for row, length in zip(source_BS, LENGTHS, strict=True)])
    return source_BS, source_BS != 0


def side_of(architecture: str) -> str:
    return "left" if architecture == "decoder" else "right"


def targets(length: int = 8, rows: int = 3) -> Tensor:
    return batch(2, (1,), [length] * rows)[1]


def inputs(architecture: str) -> tuple[Tensor, ...]:
    source_BS, real_BS = padded(side_of(architecture))
    return (source_BS, real_BS) if architecture == "encoder" else (source_BS, targets(), real_BS)


@pytest.mark.parametrize("changes", OPTIONS)
@pytest.mark.parametrize("positions", SCHEMES)
@pytest.mark.parametrize(
    ("architecture", "side"),
    [("encoder", "left"), ("encoder", "right"), ("decoder", "left"), ("encoder_decoder", "right")],
)
def test_padding_changes_nothing(architecture: str, side: str, positions: str, changes: dict[str, Any]) -> None:
    """Never on the right of a decoder's source: there a gap would lie between it and its target."""
    source_BS, real_BS = padded(side)
    made, target = made_of(architecture, positions=positions, **changes), targets()
    rest = () if architecture == "encoder" else (target,)
    read = real_BS if architecture == "encoder" else torch.ones_like(target, dtype=torch.bool)
    with torch.no_grad():
        out = made(source_BS, *rest, real_BS)
        assert out.isfinite().all()
        other = made(torch.where(real_BS, source_BS, 77), *rest, real_BS)
        assert torch.equal(other[read], out[read])
        for row in range(3):
            alone = made(source_BS[row, real_BS[row]][None], *(ids[row : row + 1] for ids in rest))
            torch.testing.assert_close(out[row, read[row]], alone[0], atol=2e-5, rtol=1e-5)
        assert not torch.isclose(made(source_BS, *rest)[read], out[read], atol=1e-3).all()


@pytest.mark.parametrize("changes", OPTIONS)
@pytest.mark.parametrize("positions", SCHEMES)
@pytest.mark.parametrize("architecture", ["decoder", "encoder_decoder"])
def test_a_later_target_token_never_changes_an_earlier_prediction(
    architecture: str, positions: str, changes: dict[str, Any]
) -> None:
    made, target = made_of(architecture, positions=positions, **changes), targets()
    source_BS, real_BS = padded(side_of(architecture))
    with torch.no_grad():
        out = made(source_BS, target, real_BS)
        for position in range(8):
            changed = target.clone()
            changed[:, position] = 5 + (target[:, position] + 1) % 500
            after = made(source_BS, changed, real_BS)
            assert torch.equal(after[:, :position], out[:, :position])
            assert not torch.isclose(after[:, position], out[:, position], atol=1e-3).all(-1).any()


@pytest.mark.parametrize("positions", SCHEMES)
def test_a_prefix_is_read_in_both_directions_and_never_sees_the_target(positions: str) -> None:
    ids = torch.randint(5, VOCAB_SIZE, (1, 10))
    other = ids.clone()
    other[:, 5] = 5 + (ids[:, 5] + 1) % 500  # the last of a prefix of 6
    with torch.no_grad():
        for both_ways in (False, True):
            made = model(architecture="decoder", positions=positions, bidirectional_prefix=both_ways)
            own, changed = (made.begin(each[:, :6]).caches[1].own.key_BHLK for each in (ids, other))
            assert torch.isclose(own[:, :, 0], changed[:, :, 0]).all() == (not both_ways)
            # What the second layer knows of the prefix is the same, however the target goes on.
            state = made.begin(ids[:, :6])
            made.step(ids[:, 6:], state)
            assert torch.equal(state.caches[1].own.key_BHLK[:, :, :6], own)


def stepwise(made: Any, state: Any, target: Tensor, pieces: list[int]) -> Tensor:
    assert sum(pieces) == target.shape[1]
    return torch.cat([made.step(piece, state) for piece in target.split(pieces, dim=1)], dim=1)


@pytest.mark.parametrize("changes", OPTIONS)
@pytest.mark.parametrize("positions", SCHEMES)
@pytest.mark.parametrize("architecture", ["decoder", "encoder_decoder"])
def test_decoding_step_by_step_gives_the_logits_of_the_full_pass(
    architecture: str, positions: str, changes: dict[str, Any]
) -> None:
    made, target = made_of(architecture, positions=positions, **changes), targets()
    source_BS, real_BS = padded(side_of(architecture))
    sources = [(source_BS, real_BS), (torch.where(real_BS, source_BS, 77), None)]
    if architecture == "decoder":
        sources += [(source_BS[:, :0], None), (source_BS[:, :0], real_BS[:, :0]), (source_BS[:, 6:], None)]
    with torch.no_grad():
        for source, real in sources:
            full = made.logits(made(source, target, real))
            for pieces in ([1] * 8, [3, 1, 4], [8]):
                steps = made.logits(stepwise(made, made.begin(source, real), target, pieces))
                torch.testing.assert_close(steps, full, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("changes", OPTIONS)
@pytest.mark.parametrize("positions", SCHEMES)
@pytest.mark.parametrize("architecture", ["decoder", "encoder_decoder"])
def test_rows_kept_go_on_as_if_alone_in_any_order_and_repeated(
    architecture: str, positions: str, changes: dict[str, Any]
) -> None:
    made, target = made_of(architecture, positions=positions, **changes), targets()
    source_BS, real_BS = padded(side_of(architecture))
    rows = torch.tensor([0, 2, 2])
    written = target[rows, :3]
    with torch.no_grad():
        state = made.begin(source_BS, real_BS)
        state.keep(rows)  # before anything is written
        made.step(written, state)
        for keep, new in (([2, 0, 0, 1], 2), ([3, 1], 1), ([0, 0, 1], 1)):
            state.keep(torch.tensor(keep))
            rows, written = rows[keep], torch.cat([written[keep], targets(new, rows=len(keep))], dim=1)
            got = made.step(written[:, -new:], state)
            expected = made(source_BS[rows], written, real_BS[rows])[:, -new:]
            torch.testing.assert_close(got, expected, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("positions", SCHEMES)
@pytest.mark.parametrize("architecture", ["encoder", "decoder", "encoder_decoder"])
def test_in_bfloat16_nothing_changes_but_the_last_digits(architecture: str, positions: str) -> None:
    made, given = made_of(architecture, positions=positions, key_value_heads=2), inputs(architecture)
    real = given[1] if architecture == "encoder" else torch.ones_like(given[1], dtype=torch.bool)
    with torch.no_grad():
        exact = made.logits(made(*given))[real]
        with torch.autocast("cpu", torch.bfloat16):
            rough = made.logits(made(*given))[real]
    assert rough.dtype == torch.bfloat16
    assert (rough - exact).abs().mean() < 0.03 * exact.abs().mean()


@pytest.mark.parametrize("architecture", ["encoder", "decoder", "encoder_decoder"])
def test_gradients_are_finite_and_reach_every_parameter_with_padding(architecture: str) -> None:
    made = made_of(architecture, positions="relative", key_value_heads=2, qk_norm=True).train()
    made.logits(made(*inputs(architecture))).logsumexp(-1).sum().backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("dropped", ["dropout", "attention_dropout"])
@pytest.mark.parametrize("architecture", ["encoder", "decoder", "encoder_decoder"])
def test_dropout_is_in_training_alone_and_draws_nothing_at_zero(architecture: str, dropped: str) -> None:
    given = inputs(architecture)

    def run(made: Any, seed: int) -> tuple[Tensor, bool]:
        """The output, and whether a random number was drawn."""
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        out = made(*given)
        return out, not torch.equal(torch.get_rng_state(), before)

    made = made_of(architecture, **{dropped: 0.3})
    (one, drew), (other, _) = run(made, 1), run(made, 2)
    assert torch.equal(one, other)
    assert not drew
    made.train()
    (one, drew), (same, _), (other, _) = run(made, 1), run(made, 1), run(made, 2)
    assert torch.equal(one, same)
    assert drew
    assert not torch.isclose(one, other).all(-1).all(-1).any()
    _, drew = run(made_of(architecture).train(), 1)
    assert not drew


def test_segments_add_their_vector_and_are_the_first_if_not_said() -> None:
    made, (source_BS, real_BS) = made_of("encoder", token_types=3), padded("right")
    first = torch.zeros_like(source_BS)
    assert torch.equal(made(source_BS, real_BS), made(source_BS, real_BS, types_BS=first))
    moved = made_of("encoder", token_types=3)
    moved.types.weight.data = made.types.weight.data[[2, 1, 0]]
    torch.testing.assert_close(moved(source_BS, real_BS, types_BS=first + 2), made(source_BS, real_BS))
    assert not torch.isclose(made(source_BS, types_BS=first + 1), made(source_BS), atol=1e-3).all(-1).any()


def test_shift_right_puts_the_start_in_front_and_drops_the_last() -> None:
    assert shift_right(torch.tensor([[7, 8, 2], [9, 2, 0]]), bos_id=1).tolist() == [[1, 7, 8], [1, 9, 2]]


def test_a_tied_matrix_counts_once() -> None:
    tied, untied = (made_of("encoder_decoder", tied_output=tied) for tied in (True, False))
    assert count_parameters(untied) - count_parameters(tied) == VOCAB_SIZE * 32
