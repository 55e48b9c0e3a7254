"""Trainings that go wrong at a step chosen beforehand: what is told, saved and left alone, and what a rerun does."""

from contextlib import suppress
from math import isfinite
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given
from hypothesis import strategies as st
from interruptions import Killed, Moments, Result, assert_same, raise_killed, train
from safetensors.torch import load_file
from spikes import SOON, guard, plan_of, spiky
from stage_runs import PRETRAIN, running, workspace
from test_launch import Ahead, said
from tiny import config, pairs_split, recipe, trainer

from lightning_modules import guards
from lightning_modules.callbacks import Checkpoints
from lightning_modules.checkpoint_files import newest_checkpoint
from lightning_modules.datamodule import TextDataModule
from lightning_modules.errors import PipelineError
from lightning_modules.guards import RunningLoss, StepGuard, TrainingFailed
from lightning_modules.model_folder import new_model
from lightning_modules.module import TransformerModule
from lightning_modules.optim import OPTIMIZERS


class Poison(pl.Callback):
    """From step `at` (from 1) on makes the loss or the gradient of one parameter infinite or NaN."""

    def __init__(self, at: int, loss: float = 0.0, gradient: float = 0.0) -> None:
        self.at, self.loss, self.gradient = at, loss, gradient

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, TransformerModule)
        _, parameter = poisoned(pl_module)

        def spoil(gradient: torch.Tensor) -> torch.Tensor:
            return gradient + self.gradient if trainer.global_step + 1 >= self.at else gradient

        parameter.register_hook(spoil)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: torch.Tensor) -> None:
        assert isinstance(pl_module, TransformerModule)
        if trainer.global_step + 1 >= self.at:
            pl_module.train_loss = pl_module.train_loss + self.loss


def poisoned(module: TransformerModule) -> tuple[str, torch.nn.Parameter]:
    return list(module.model.named_parameters())[5]


@pytest.fixture(autouse=True)
def _soon_warm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SOON.items():
        monkeypatch.setattr(guards, name, value)


NAN, INFINITY = float("nan"), float("inf")
MOMENTS = {"between": 5, "saving-and-validating": 6, "saving": 8, "last": 9}
BAD = [
    *(("the loss (nan)", {"loss": NAN}, moment) for moment in MOMENTS),
    *(("the gradient of ", {"gradient": NAN}, moment) for moment in MOMENTS),
    ("the loss (inf)", {"loss": INFINITY}, "saving-and-validating"),
    ("the gradient of ", {"gradient": -INFINITY}, "saving-and-validating"),
]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A training in which all is well."""
    root = tmp_path_factory.mktemp("good")
    return train(plan_of(root, steps=9, validate_every=6), root / "run")


@pytest.mark.parametrize(("what", "poison", "moment"), BAD)
def test_what_is_not_finite_ends_it_and_is_never_saved(
    what: str, poison: dict[str, float], moment: str, good: Result, tmp_path: Path
) -> None:
    plan, folder, at = plan_of(tmp_path, steps=9, validate_every=6), tmp_path / "run", MOMENTS[moment]
    for _ in range(2):  # a rerun meets the same
        with pytest.raises(TrainingFailed, match=f"not finite at step {at}:") as caught:
            train(plan, folder, Poison(at, **poison), guard(folder, plan))
        assert what in str(caught.value)
        assert "\n" not in str(caught.value)
        newest = newest_checkpoint(folder)
        assert newest is not None
        assert newest.name == f"step-{(at - 1) // 2 * 2:09d}.ckpt"
        state = torch.load(newest, weights_only=True)
        assert all(tensor.isfinite().all() for tensor in state["state_dict"].values())
        best = folder / "best.safetensors"
        assert best.exists() == (at > 6)
        assert at <= 6 or all(tensor.isfinite().all() for tensor in load_file(best).values())
        saved = load_file(folder / f"bad-batch-step-{at}.safetensors")
        batch = plan.split.training_batch(at - 1, 0, 1)
        assert torch.equal(saved["0.source_BS"], batch.source_BS)
        assert torch.equal(saved["0.target_BT"], batch.target_BT)
    assert_same(train(plan, folder), good)  # once the reason is gone


def test_nor_is_it_averaged(tmp_path: Path) -> None:
    """At a step that is due for saving and not for validation."""
    plan, folder = plan_of(tmp_path, steps=9, average=2), tmp_path / "run"
    with pytest.raises(TrainingFailed, match="not finite at step 8:"):
        train(plan, folder, guard(folder, plan), Poison(8, gradient=float("nan")))
    saved = sorted(folder.glob("weights-*"))
    assert [path.name for path in saved] == ["weights-000000004.safetensors", "weights-000000006.safetensors"]
    assert all(tensor.isfinite().all() for path in saved for tensor in load_file(path).values())


def test_where_the_batch_cannot_be_saved_the_reason_to_save_it_is_told_all_the_same(tmp_path: Path) -> None:
    plan, folder = plan_of(tmp_path), tmp_path / "run"
    (folder / "bad-batch-step-3.safetensors").mkdir(parents=True)
    with pytest.raises(TrainingFailed, match=r"not finite at step 3: the gradient of .* could not be kept") as caught:
        train(plan, folder, Poison(3, gradient=float("nan")), guard(folder, plan))
    assert "\n" not in str(caught.value)
    assert not list(folder.glob("*.unfinished"))


def train_two(folder: Path) -> None:
    """Two processes that may roll back, the second of which believes that it went on from step 5."""
    first = StepGuard("test", folder, "roll_back", 100, 1, None)
    callbacks = [Ahead(), first, Checkpoints(folder, 100, 1, 0, 0)]
    made, split = trainer(20, 100, 1.0, callbacks, devices=2, strategy="ddp_fork"), pairs_split(folder / "data")
    with suppress(PipelineError):
        made.fit(TransformerModule(new_model(config(), 0), recipe(steps=20)), TextDataModule(split, split))


def test_processes_that_found_different_checkpoints_save_none_together(tmp_path: Path) -> None:
    different = "the processes found different checkpoints: this one goes on from step"
    assert different in said(tmp_path, train_two, status=1, PIPELINE_PEER_TIMEOUT="60")
    assert not list(tmp_path.glob("step-*"))


def test_the_parameters_whose_gradient_is_bad_are_named(tmp_path: Path) -> None:
    plan, folder = plan_of(tmp_path), tmp_path / "run"
    name, _ = poisoned(TransformerModule(new_model(config(), seed=0), recipe()))
    with pytest.raises(TrainingFailed, match=f"the gradient of {name}\\."):
        train(plan, folder, Poison(3, gradient=float("nan")), guard(folder, plan))


def test_all_parts_of_an_accumulated_step_are_saved(tmp_path: Path) -> None:
    plan, folder = plan_of(tmp_path, accumulate=2), tmp_path / "run"
    with pytest.raises(TrainingFailed, match="not finite at step 3:"):
        train(plan, folder, Poison(3, gradient=float("nan")), guard(folder, plan))
    saved = load_file(folder / "bad-batch-step-3.safetensors")
    for part in range(2):
        assert torch.equal(saved[f"{part}.target_BT"], plan.split.training_batch(2, part, 2).target_BT)


def test_a_guard_changes_nothing_where_all_is_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_of(tmp_path)
    expected = train(plan, tmp_path / "without")
    for on_spike in ("ignore", "skip", "roll_back"):
        folder = tmp_path / on_spike
        assert_same(train(plan, folder, guard(folder, plan, on_spike)), expected)
    assert "spike" not in capsys.readouterr().out


@given(losses=st.lists(st.floats(0.1, 20.0), min_size=1, max_size=40))
def test_the_running_mean_and_variance_are_plain_ones_at_first(losses: list[float]) -> None:
    running = RunningLoss()
    for loss in losses[:4]:
        running.take(loss)
    assert running.mean == pytest.approx(np.mean(losses[:4]))
    assert running.variance == pytest.approx(np.var(losses[:4]), abs=1e-9)
    for loss in losses[4:]:
        limit = running.limit
        running.take(loss)
        assert running.mean <= max(limit, max(losses))


def test_a_lasting_rise_soon_is_no_spike_any_more() -> None:
    running, rng = RunningLoss(), np.random.default_rng(0)
    for _ in range(200):
        running.take(rng.normal(3.0, 0.1))
    judged = []
    for _ in range(60):
        loss = rng.normal(6.0, 0.1)
        judged.append(loss > running.limit)
        running.take(loss)
    assert judged[0]
    assert not any(judged[30:])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_without_gradients_an_optimiser_changes_neither_weights_nor_its_state(optimizer: str) -> None:
    model = new_model(config(), seed=0)
    made = OPTIMIZERS[optimizer](model, 0.01, 0.1)

    def state() -> list[torch.Tensor]:
        kept = made.state_dict()["state"].values()
        tensors = [value for entry in kept for value in entry.values() if isinstance(value, torch.Tensor)]
        return [tensor.clone() for tensor in (*tensors, *model.parameters())]

    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    made.step()
    before = state()
    made.zero_grad()
    made.step()
    assert all(torch.equal(one, other) for one, other in zip(state(), before, strict=True))


def test_skipping_leaves_a_spike_unlearnt_and_counts_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, logged, weights = spiky(tmp_path, {6}), [], {}

    class Weights(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
            assert isinstance(pl_module, TransformerModule)
            weights[trainer.global_step] = [p.detach().clone() for p in pl_module.model.parameters()]

    folder = tmp_path / "run"
    result = train(plan, folder, guard(folder, plan, "skip", lambda *row: logged.append(row)), Weights())

    def same(one: int, other: int) -> bool:
        return all(torch.equal(a, b) for a, b in zip(weights[one], weights[other], strict=True))

    assert [step for step in range(2, 12) if same(step, step - 1)] == [7]
    assert logged == [({"skipped_steps": 1}, 7)]
    assert "at step 7" in capsys.readouterr().out
    assert result.steps == 11


def test_skipping_is_the_same_killed_at_any_moment(tmp_path: Path) -> None:
    plan, folder = spiky(tmp_path, {6}), tmp_path / "whole"
    expected = train(plan, folder, guard(folder, plan, "skip"), Moments())
    for at in range(2, expected.moments + 1, 5):
        folder = tmp_path / f"killed-{at}"
        with pytest.raises(Killed):
            train(plan, folder, guard(folder, plan, "skip"), Moments(at, raise_killed))
        assert_same(train(plan, folder, guard(folder, plan, "skip")), expected)


class PoisonedValidation(pl.Callback):
    """From step `at` on a weight is NaN while the model is validated, as it is where held-out text overflows."""

    def __init__(self, at: int) -> None:
        self.at, self.whole = at, torch.zeros(())

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step >= self.at:
            _, parameter = poisoned(cast(TransformerModule, pl_module))
            self.whole = parameter.detach().clone()
            parameter.data[0] = float("nan")

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step >= self.at:
            poisoned(cast(TransformerModule, pl_module))[1].data.copy_(self.whole)


def test_weights_without_a_finite_loss_on_held_out_text_are_never_the_best(tmp_path: Path) -> None:
    plan, folder = plan_of(tmp_path, steps=9, validate_every=3), tmp_path / "run"
    with pytest.raises(TrainingFailed, match=r"not finite at step 6: the validation loss \(nan of the raw weights\)"):
        train(plan, folder, guard(folder, plan), PoisonedValidation(6))
    assert newest_checkpoint(folder) == folder / "step-000000004.ckpt"


def test_where_their_average_has_one_it_may_be(tmp_path: Path) -> None:
    plan, folder = plan_of(tmp_path, steps=9, validate_every=3, ema_decay=0.5), tmp_path / "run"
    result = train(plan, folder, guard(folder, plan), PoisonedValidation(3))
    assert (result.best_step, result.best_weights) == (9, "ema")
    assert isfinite(result.best_loss)


def test_two_processes_end_alike_with_one_line_and_a_batch_each(tmp_path: Path) -> None:
    """A learning rate at which the first step leaves nothing finite."""
    settings = {"learning_rate": 1e30, "warmup_steps": 1, "gradient_clip": 1e9, "devices": 2, "strategy": "ddp"}
    root = workspace(tmp_path / "root", pretrain=settings)
    with running(root, PRETRAIN) as process:
        assert process.wait(timeout=300) == 1
    log = (root / "log.txt").read_text()
    assert "Traceback" not in log
    assert len([line for line in log.splitlines() if line.startswith("error: pretrain: not finite at step 2:")]) == 1
    names = {path.name for path in root.glob(".pipeline/checkpoints/*/*.safetensors")}
    assert names == {"bad-batch-step-2.safetensors", "bad-batch-step-2-rank-1.safetensors"}
    assert not (root / "models").exists()
