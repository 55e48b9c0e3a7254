"""Schedules and optimisers, each against its formula, the published algorithm or torch's own."""

import math
import re
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import batch_for, config, model, reader, recipe, rows_split
from torch import nn

from lightning_modules.callbacks import Checkpoints
from lightning_modules.datamodule import TextDataModule
from lightning_modules.loss import batch_loss
from lightning_modules.model_folder import Model, new_model
from lightning_modules.module import TransformerModule
from lightning_modules.optim import OPTIMIZERS, SCHEDULES, adafactor, adamw, learning_rate_share, muon
from stages.params_schema import Training

ENDING = ("linear", "cosine", "wsd")  # at 0
RATES = {"adamw": 5e-3, "muon": 1e-2, "adafactor": 5e-2}


def test_params_yaml_allows_what_there_is() -> None:
    for key, known in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
        assert set(get_args(Training.model_fields[key].annotation)) == set(known)


@pytest.mark.parametrize("warmup", [1, 10, 4000])
def test_inverse_sqrt_is_the_papers_formula_up_to_a_constant(warmup: int) -> None:
    def paper(step: int) -> float:  # section 5.3; its steps count from 1
        return 512**-0.5 * min(step**-0.5, step * warmup**-1.5)

    steps = [*range(1, 50), 100, 3999, 4000, 4001, 99_999]
    ratios = [learning_rate_share("inverse_sqrt", step - 1, warmup, 100_000) / paper(step) for step in steps]
    assert ratios == pytest.approx([ratios[0]] * len(steps))
    assert learning_rate_share("inverse_sqrt", warmup - 1, warmup, 100_000) == 1.0


@given(st.sampled_from(sorted(SCHEDULES)), st.integers(0, 60), st.integers(0, 200))
def test_it_rises_in_a_line_to_one_and_never_again(schedule: str, warmup: int, after: int) -> None:
    steps = max(warmup + after, 1)
    shares = [
        learning_rate_share(schedule, step, warmup, steps) for step in range(steps + 1)
    ]  # torch asks for one more
    peak = max(warmup, 1)
    assert shares[:peak] == pytest.approx([(step + 1) / peak for step in range(peak)])
    assert all(0 <= later <= earlier for earlier, later in pairwise(shares[peak - 1 :]))
    if schedule in ENDING and steps > peak:
        assert shares[steps - 1] == pytest.approx(0.0, abs=1e-9)
        assert shares[steps - 2] > 0


@pytest.mark.parametrize("warmup", [100, 5_000, 9_000])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_where_the_warm_up_ends_there_is_no_jump(schedule: str, warmup: int) -> None:
    before, at, after = (learning_rate_share(schedule, warmup - 1 + n, warmup, 10_000) for n in (-1, 0, 1))
    assert at == 1.0
    assert max(at - before, at - after) <= 0.0101


def test_the_line_the_cosine_and_the_plateau_are_where_they_should_be() -> None:
    def at(schedule: str, step: int, warmup: int = 100) -> float:
        return learning_rate_share(schedule, step - 1, warmup, 300)

    assert [at("linear", step) for step in (150, 200, 300)] == pytest.approx([0.75, 0.5, 0.0])
    quarter = (1 + math.sqrt(0.5)) / 2
    assert [at("cosine", step) for step in (150, 200, 250)] == pytest.approx([quarter, 0.5, 1 - quarter])
    assert [at("wsd", step) for step in (101, 240, 255, 270, 300)] == pytest.approx([1.0, 1.0, 0.75, 0.5, 0.0])
    assert [at("wsd", step, 280) for step in (280, 290, 300)] == pytest.approx([1.0, 0.5, 0.0])
    assert {at("constant", step) for step in (100, 101, 300)} == {1.0}


# Matrices and filters that multiply; the names are written out, so that a new part has to be thought of here.
MULTIPLIES = re.compile(
    r"(.*\.)?(query|key_value|output|inner|outer|ends|highway|projection|filters\.\d|transform\.0)\.weight"
)
IN_BLOCKS = re.compile(
    r".*\.blocks\.\d\.(cross_)?(attention|feed_forward)\.(query|key_value|output|inner|outer)\.weight"
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


def names_in(group: dict[str, Any], ours: nn.Module) -> set[str]:
    names = {id(parameter): name for name, parameter in ours.named_parameters()}
    return {names[id(parameter)] for parameter in group["params"]}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_norms_biases_and_tables_of_vectors_do_not_decay_and_nothing_is_left_out(shape: str, name: str) -> None:
    ours = model(**SHAPES[shape])
    *decayed, kept = OPTIMIZERS[name](ours, 1e-3, 0.3).param_groups
    assert [group["weight_decay"] for group in (*decayed, kept)] == [0.3] * len(decayed) + [0.0]
    names = {name for name, _ in ours.named_parameters()}
    assert sum(len(group["params"]) for group in (*decayed, kept)) == len(names)
    multiplies = {name for name in names if MULTIPLIES.fullmatch(name)}
    assert set.union(*(names_in(group, ours) for group in decayed)) == multiplies
    assert names_in(kept, ours) == names - multiplies
    if name == "muon":
        assert names_in(decayed[0], ours) == {name for name in names if IN_BLOCKS.fullmatch(name)}


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


def plain_adamw(named: dict[str, torch.Tensor], decay: float) -> torch.optim.AdamW:
    multiply = [weight for name, weight in named.items() if MULTIPLIES.fullmatch(name)]
    others = [weight for name, weight in named.items() if not MULTIPLIES.fullmatch(name)]
    groups = [{"params": multiply, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98), eps=1e-9, fused=True)


def test_adamw_with_the_papers_schedule_is_torchs_bit_for_bit(tmp_path: Path) -> None:
    split, made = rows_split(tmp_path), model().train()
    trained = TransformerModule(made, recipe(learning_rate=4e-3))
    tiny.trainer(6, 3, 1e9, []).fit(trained, TextDataModule(split, split))
    plain = model().train()
    optimizer = plain_adamw(dict(plain.named_parameters()), 0.01)
    for step in range(6):
        share = (step + 1) / 3 if step < 3 else (3 / (step + 1)) ** 0.5
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * share
        optimizer.zero_grad()
        loss, tokens = batch_loss(plain, split.training_batch(step, 0, 1), 0.0)
        (loss / tokens).backward()
        optimizer.step()
    assert_same(made, plain)


def assert_same(one: nn.Module, other: nn.Module) -> None:
    for name, weight in one.named_parameters():
        assert torch.equal(weight, other.get_parameter(name)), name


def random_gradients(made: nn.Module, seed: int) -> None:
    torch.manual_seed(seed)
    for parameter in made.parameters():
        parameter.grad = torch.randn_like(parameter) if parameter.requires_grad else None


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("shape", ["gated", "grouped", "pointing"])
def test_muon_is_torchs_on_each_matrix_by_itself_and_adamw_on_the_rest(
    shape: str, half: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: half)  # as on another machine
    changes = {"gated": {"activation": "swiglu"}, "grouped": {"key_value_heads": 2}, "pointing": {}}[shape]
    ours, theirs = ((reader if shape == "pointing" else model)(**changes) for _ in range(2))
    both = muon(ours, 1e-3, 0.2)
    halves = ("key_value.weight", "inner.weight") if shape == "gated" else ("key_value.weight",)
    matrices = {  # each beside where it is stored: keys and values, a gate and its values are two in one weight
        (name, number): nn.Parameter(part.clone())
        for name, weight in theirs.named_parameters()
        if IN_BLOCKS.fullmatch(name)
        for number, part in enumerate(weight.detach().chunk(2 if name.endswith(halves) else 1))
    }
    before = {key: matrix.detach().clone() for key, matrix in matrices.items()}
    by_muon = torch.optim.Muon(matrices.values(), lr=1e-3, weight_decay=0.2, adjust_lr_fn="match_rms_adamw")
    rest = {name: weight for name, weight in theirs.named_parameters() if not IN_BLOCKS.fullmatch(name)}
    by_adamw = plain_adamw(rest, 0.2)
    for step in range(3):
        random_gradients(ours, step)
        random_gradients(theirs, step)
        for (name, number), matrix in matrices.items():
            gradient = theirs.get_parameter(name).grad
            assert gradient is not None
            matrix.grad = gradient[number * len(matrix) :][: len(matrix)]
        for optimizer in (both, by_muon, by_adamw):
            optimizer.step()
    for (name, number), matrix in matrices.items():
        got = ours.get_parameter(name)[number * len(matrix) :][: len(matrix)]
        if half:
            assert torch.equal(got, matrix), name
        else:  # torch's is in bf16
            moved = (matrix - before[name, number]).norm()
            assert (got - matrix).norm() < 0.05 * moved, f"{name}: {(got - matrix).norm() / moved}"
    for name, weight in rest.items():
        assert torch.equal(ours.get_parameter(name), weight), name
    assert len(both.state) == sum(parameter.requires_grad for parameter in ours.parameters())


def test_muons_steps_are_about_as_long_as_adamws_in_all_matrices_and_directions() -> None:
    ours = model(d_model=64, d_ff=256)
    before = {name: weight.detach().clone() for name, weight in ours.named_parameters()}
    optimizer = muon(ours, 1e-2, 0.0)
    random_gradients(ours, 0)
    optimizer.step()
    for name in names_in(optimizer.param_groups[0], ours):
        for moved in (ours.get_parameter(name).detach() - before[name]).chunk(2 if "key_value" in name else 1):
            assert moved.square().mean().sqrt().item() == pytest.approx(0.2 * 1e-2, rel=0.25)
            lengths = torch.linalg.svdvals(moved) / (0.2 * 1e-2 * max(moved.shape) ** 0.5)
            assert lengths.quantile(0.05) > 0.5, name
            assert lengths.max() < 1.3, name


def test_adafactors_first_step_moves_a_tensor_by_a_share_of_its_size() -> None:
    ours = model()
    before = {name: weight.detach().clone() for name, weight in ours.named_parameters()}
    optimizer = adafactor(ours, 0.03, 0.0)
    random_gradients(ours, 0)
    optimizer.step()
    for name, weight in ours.named_parameters():
        moved = (weight.detach() - before[name]).square().mean().sqrt().item()
        assert moved == pytest.approx(0.03 * max(before[name].square().mean().sqrt().item(), 1e-3), rel=0.15), name
    sizes = [value.numel() for value in optimizer.state[ours.embedding.weight_VD].values()]
    assert sorted(sizes) == [1, *sorted(ours.embedding.weight_VD.shape)]  # a sum a row and one a column


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_taken_up_from_a_checkpoint_it_ends_as_if_never_stopped(name: str, precision: str, tmp_path: Path) -> None:
    split = rows_split(tmp_path / "store")

    def trained(folder: str, start: Path | None) -> Model:
        made = new_model(
            config(d_model=16, encoder_layers=1, decoder_layers=1, dropout=0.1), seed=0 if start is None else 9
        )
        module = TransformerModule(made, recipe(steps=8, optimizer=name, schedule="wsd", learning_rate=RATES[name]))
        trainer = tiny.trainer(8, 4, 0.5, [Checkpoints(tmp_path / folder, 3, 2, 0, 0)], precision=precision)
        trainer.fit(module, TextDataModule(split, split), ckpt_path=start, weights_only=True)
        assert trainer.global_step == 8
        return made

    expected = trained("whole", None)
    assert_same(trained("resumed", tmp_path / "whole/step-000000003.ckpt"), expected)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_loss_falls(name: str, tmp_path: Path) -> None:
    split, made = rows_split(tmp_path), new_model(config(), seed=0)
    optimizer = OPTIMIZERS[name](made, RATES[name], 0.01)

    def closure(step: int) -> float:
        optimizer.zero_grad()
        loss, tokens = batch_loss(made, split.training_batch(step, 0, 1), 0.0)
        (loss / tokens).backward()
        return (loss / tokens).item()

    losses = [optimizer.step(partial(closure, step)) for step in range(30)]
    assert sum(losses[-3:]) / 3 < sum(losses[:3]) / 3 - 1.0
