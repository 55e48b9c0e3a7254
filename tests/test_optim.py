"""The schedule of the paper, and AdamW with its two groups."""

import re
from itertools import pairwise
from typing import Any

import pytest
import torch
from tiny import batch_for, model

from lightning_modules.loss import batch_loss
from lightning_modules.optim import adamw, learning_rate_share


@pytest.mark.parametrize("warmup", [1, 10, 4000])
def test_inverse_sqrt_is_the_papers_formula_up_to_a_constant(warmup: int) -> None:
    def paper(step: int) -> float:  # section 5.3; its steps count from 1
        return 512**-0.5 * min(step**-0.5, step * warmup**-1.5)

    steps = [*range(1, 50), 100, 3999, 4000, 4001, 99_999]
    ratios = [learning_rate_share("inverse_sqrt", step - 1, warmup, 100_000) / paper(step) for step in steps]
    assert ratios == pytest.approx([ratios[0]] * len(steps))
    assert learning_rate_share("inverse_sqrt", warmup - 1, warmup, 100_000) == 1.0


@pytest.mark.parametrize("schedule", ["inverse_sqrt", "linear"])
@pytest.mark.parametrize("warmup", [0, 1, 7, 100])
def test_it_rises_to_one_without_a_jump_and_falls_from_there(schedule: str, warmup: int) -> None:
    shares = [learning_rate_share(schedule, step, warmup, 300) for step in range(300)]
    assert all(share >= 0 for share in shares)
    assert max(shares) == pytest.approx(1.0, abs=0.005)
    peak = shares.index(max(shares))
    assert peak == max(warmup - 1, 0)
    assert all(later > earlier for earlier, later in pairwise(shares[: peak + 1]))
    assert all(later < earlier for earlier, later in pairwise(shares[peak:]))
    if warmup >= 7:
        assert abs(shares[peak + 1] - shares[peak]) <= 1 / warmup


def test_linear_ends_at_zero() -> None:
    assert learning_rate_share("linear", 299, 100, 300) == 0.0
    assert learning_rate_share("linear", 199, 100, 300) == pytest.approx(0.5)
    assert learning_rate_share("linear", 99, 100, 100) == 1.0  # warm-up to the very end divides by nothing


# Matrices and filters that multiply; the names are written out, so that a new part has to be thought of here.
MULTIPLIES = re.compile(
    r".*\.(query|key_value|output|inner|outer|ends|highway|projection|filters\.\d|transform\.0)\.weight"
)
SHAPES: dict[str, dict[str, Any]] = {
    "pre-norm": {},
    "post-norm": {"norm": "post"},
    "relative": {"positions": "relative", "tied_output": False},
    "decoder": {"architecture": "decoder", "positions": "rotary", "qk_norm": True, "norm_type": "rms"},
    "learned": {"architecture": "decoder", "positions": "learned"},
    "encoder": {"architecture": "encoder", "token_types": 2, "output_transform": True, "output_bias": True},
    "characters": {"architecture": "encoder", "embeddings": "characters", "tied_output": False},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_norms_biases_and_tables_of_vectors_do_not_decay_and_nothing_is_left_out(shape: str) -> None:
    ours = model(**SHAPES[shape])
    decayed, kept = adamw(ours, 1e-3, 0.3).param_groups
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.3, 0.0)
    names = {id(parameter): name for name, parameter in ours.named_parameters()}
    in_decayed = {names[id(p)] for p in decayed["params"]}
    in_kept = {names[id(p)] for p in kept["params"]}
    assert len(decayed["params"]) + len(kept["params"]) == len(names)
    assert in_decayed | in_kept == set(names.values())
    assert in_decayed == {name for name in names.values() if MULTIPLIES.fullmatch(name)}


def test_a_step_is_adamw_as_published() -> None:
    """Algorithm 2 of arXiv:1711.05101 in float64, beside three fused steps."""
    ours = model()
    optimizer = adamw(ours, 1e-2, 0.1)
    name = "encoder.blocks.0.feed_forward.inner.weight"
    weight = dict(ours.named_parameters())[name]
    expected, first, second = weight.detach().double(), 0.0, 0.0
    made = batch_for(ours, 0, [5, 3], [4, 2])
    for step in range(1, 4):
        optimizer.zero_grad()
        batch_loss(ours, made, 0.0)[0].backward()
        assert weight.grad is not None
        gradient = weight.grad.double()
        first, second = 0.9 * first + 0.1 * gradient, 0.98 * second + 0.02 * gradient**2
        direction = (first / (1 - 0.9**step)) / ((second / (1 - 0.98**step)).sqrt() + 1e-9)
        expected = expected - 1e-2 * (direction + 0.1 * expected)
        optimizer.step()
        torch.testing.assert_close(weight.detach().double(), expected, atol=1e-6, rtol=1e-5)
