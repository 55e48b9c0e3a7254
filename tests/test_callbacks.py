"""Training killed or stopped at every single moment and taken up again: the same weights and the same curve.

"Killed" is an exception that nothing catches, thrown in one hook after another; real processes and real kills are in
test_training.
"""

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from interruptions import Killed, Moments, Plan, Result, assert_same, raise_killed, send_sigterm, train
from safetensors.torch import load_file
from tiny import pairs_split, rows_split

from lightning_modules import text_pairs
from lightning_modules.batching import Indices, length_batches
from lightning_modules.checkpoint_files import newest_checkpoint
from lightning_modules.model_folder import Model

# Saving and validating at the same steps, at different ones, and at the very last.
PLANS = {
    "rows": {"save_every": 2, "validate_every": 3, "steps": 8},
    "pairs": {"save_every": 3, "validate_every": 3, "steps": 6},
    "seldom": {"save_every": 5, "validate_every": 2, "steps": 7, "ema_decay": 0.5},
    "averaged": {"save_every": 2, "validate_every": 3, "steps": 6, "accumulate": 2, "ema_decay": 0.5, "average": 2},
}


def plan_of(name: str, root: Path) -> Plan:
    return Plan(pairs_split(root / "store") if name == "pairs" else rows_split(root / "store"), **PLANS[name])


def moments(first: bool, expected: Result) -> range:
    """One half of them before the other callbacks, the other half after them."""
    return range(1 if first else 2, expected.moments + 1, 2)


@pytest.mark.parametrize("first", [True, False], ids=["before-the-others", "after-the-others"])
@pytest.mark.parametrize("name", PLANS)
def test_killed_at_every_moment_it_ends_as_if_never_killed(name: str, first: bool, tmp_path: Path) -> None:
    plan = plan_of(name, tmp_path)
    expected = train(plan, tmp_path / "whole", Moments())
    assert [row["step"] for row in expected.curve if "train_loss" in row] == list(range(1, plan.steps + 1))
    validated = sorted({*range(plan.validate_every, plan.steps + 1, plan.validate_every), plan.steps})
    assert [row["step"] for row in expected.curve if "validation_loss" in row] == validated
    for at in moments(first, expected):
        folder, killer = tmp_path / f"killed-{at}", Moments(at, raise_killed)
        with pytest.raises(Killed):
            train(plan, folder, *([killer] if first else []), after=() if first else (killer,))
        assert_same(train(plan, folder), expected)


OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "a causal decoder": ("causal_lm", {"architecture": "decoder", "positions": "learned"}),
    "a decoder that denoises": ("denoising", {"architecture": "decoder", "positions": "rotary", "norm_type": "rms"}),
    "a masked encoder": ("masked_lm", {"architecture": "encoder", "output_transform": True}),
    "an encoder that points": ("", {"architecture": "encoder", "positions": "relative", "output_transform": True}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_architectures_killed_now_and_then_end_as_if_never_killed_too(name: str, tmp_path: Path) -> None:
    objective, changes = OTHERS[name]
    store = tmp_path / "store"
    split = rows_split(store, objective=objective, **changes) if objective else pairs_split(store, **changes)
    plan = Plan(split, **PLANS["rows"], changes=changes)
    expected = train(plan, tmp_path / "whole", Moments())
    losses = [row["validation_loss"] for row in expected.curve if "validation_loss" in row]
    assert losses[-1] < losses[0]
    for at in range(7, expected.moments + 1, 6):
        folder = tmp_path / f"killed-{at}"
        with pytest.raises(Killed):
            train(plan, folder, Moments(at, raise_killed))
        assert newest_checkpoint(folder) is not None
        assert_same(train(plan, folder), expected)


@pytest.mark.parametrize("name", [name for name in PLANS if name != "rows"])
def test_stopped_by_sigterm_at_every_third_moment_it_saves_and_goes_on_from_there(name: str, tmp_path: Path) -> None:
    """Every other one would always be of the same kinds: the ends of batches, say, and not their beginnings."""
    plan, handler = plan_of(name, tmp_path), signal.getsignal(signal.SIGTERM)
    expected, stops = train(plan, tmp_path / "whole", Moments()), 0
    signals = range(1, expected.moments + 1, 3)
    for at in signals:
        folder = tmp_path / f"stopped-{at}"
        result = train(plan, folder, Moments(at, send_sigterm))
        assert result.moments <= at + (2 if plan.accumulate == 1 else 4) + 1, "a validation ends after a batch"
        assert signal.getsignal(signal.SIGTERM) is handler
        if result.stopped:
            stops += 1
            newest = newest_checkpoint(folder)
            assert (newest and newest.name) == (f"step-{result.steps:09d}.ckpt" if result.steps else None)
            assert_same(train(plan, folder), expected)
        else:  # it came after the last validation: the training was over anyway
            assert_same(result, expected)
    assert stops >= len(signals) - 2


def test_a_signal_that_comes_before_the_first_step_stops_before_it(tmp_path: Path) -> None:
    class AtSetup(pl.Callback):
        def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            send_sigterm()

    result = train(plan_of("rows", tmp_path), tmp_path / "run", after=(AtSetup(),))
    assert (result.stopped, result.steps) == (True, 0)


def test_killed_again_and_again_it_still_ends_the_same(tmp_path: Path) -> None:
    plan, folder = plan_of("rows", tmp_path), tmp_path / "run"
    plan.steps, kills = 12, 0
    expected = train(plan, tmp_path / "whole")
    for _ in range(20):
        try:
            result = train(plan, folder, Moments(14, raise_killed))  # it gets a few steps further each time
            break
        except Killed:
            kills += 1
    assert kills > 2
    assert_same(result, expected)


def test_the_speeds_in_the_curve_add_up_to_the_time_told(tmp_path: Path) -> None:
    """Each row's tokens over its tokens per second are its seconds; none are lost or counted twice by going on."""
    plan, folder = plan_of("rows", tmp_path), tmp_path / "run"
    with pytest.raises(Killed):
        train(plan, folder, Moments(14, raise_killed))
    result = train(plan, folder)
    assert len(result.speeds) == plan.steps
    seconds = sum(result.tokens / plan.steps / speed for speed in result.speeds)
    assert seconds == pytest.approx(result.seconds, rel=1e-6)


def test_only_the_newest_two_checkpoints_are_kept_and_nothing_unfinished(tmp_path: Path) -> None:
    plan = plan_of("rows", tmp_path)
    plan.steps = 9
    train(plan, tmp_path / "run")
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert names == ["best.safetensors", "step-000000006.ckpt", "step-000000008.ckpt"]


def test_going_on_makes_no_epoch_but_its_own_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, folder = plan_of("pairs", tmp_path), tmp_path / "run"
    plan.steps = plan.validate_every = 40
    expected = train(plan, tmp_path / "whole")
    with pytest.raises(Killed):
        train(plan, folder, Moments(75, raise_killed))
    made: list[None] = []

    def counted(source: Indices, target: Indices, tokens: int, rng: np.random.Generator | None) -> list[Indices]:
        made.extend([None] * (rng is not None))
        return length_batches(source, target, tokens, rng)

    monkeypatch.setattr(text_pairs, "length_batches", counted)
    plan.split, epoch = pairs_split(tmp_path / "store"), plan.split.batches_per_epoch
    assert plan.steps > 5 * epoch
    assert_same(train(plan, folder), expected)
    assert len(made) <= 1 + (plan.steps - 36) // (epoch - 1)


def test_the_mean_of_the_last_checkpoints_is_kept_where_it_is_the_best(tmp_path: Path) -> None:
    plan = plan_of("averaged", tmp_path)
    plan.ema_decay, plan.steps, plan.learning_rate, losses = 0.0, 8, 0.03, {}
    result = train(plan, tmp_path / "run")
    saved = [load_file(tmp_path / f"run/weights-{step:09d}.safetensors") for step in (6, 8)]
    assert len(list((tmp_path / "run").glob("weights-*"))) == 2
    for name, tensor in result.weights.items():
        torch.testing.assert_close(tensor, (saved[0][name] + saved[1][name]) / 2)
    for row in result.curve:
        losses |= {(row["step"], name): row[name] for name in row if name.startswith("validation_loss")}
    assert {name for _, name in losses} == {"validation_loss", "validation_loss_mean"}
    best = min(losses, key=losses.__getitem__)
    assert (result.best_step, result.best_loss) == (best[0], losses[best])
    assert result.best_weights == ("mean" if best[1].endswith("mean") else "raw")
    if result.best_weights == "mean":
        assert all(torch.equal(result.best[name], result.weights[name]) for name in result.best)


def sparseness(model: Model) -> float:
    """A score that has nothing to do with the loss: minus the mean size of a weight, which grows as it learns."""
    return -float(model.embedding.weight_VD.abs().mean())


def test_the_best_weights_are_those_of_the_best_score_where_there_is_one_killed_or_not(tmp_path: Path) -> None:
    plan = plan_of("averaged", tmp_path)
    plan.score = sparseness
    expected = train(plan, tmp_path / "whole", Moments())
    scores = {(row["step"], name): row[name] for row in expected.curve for name in row if "validation_score" in name}
    losses = {(row["step"], name): row[name] for row in expected.curve for name in row if "validation_loss" in name}
    assert {name for _, name in scores} == {f"validation_score{end}" for end in ("", "_ema", "_mean")}
    step, name = max(scores, key=scores.__getitem__)
    assert (step, name) != min(losses, key=losses.__getitem__)
    assert (expected.best_step, expected.best_weights) == (
        step,
        name.removeprefix("validation_score").removeprefix("_") or "raw",
    )
    assert expected.best_loss == losses[step, name.replace("score", "loss")]
    assert -float(expected.best["embedding.weight_VD"].abs().mean()) == scores[step, name]
    for at in range(5, expected.moments + 1, 7):
        with pytest.raises(Killed):
            train(plan, tmp_path / f"killed-{at}", Moments(at, raise_killed))
        assert_same(train(plan, tmp_path / f"killed-{at}"), expected)


def unlearning(root: Path, patience: int) -> Plan:
    """A learning rate so high that after its first steps the model only gets worse."""
    return Plan(rows_split(root / "store"), 20, 2, 1, patience, learning_rate=3.0)


def test_early_stopping_ends_after_so_many_validations_without_a_better_one(tmp_path: Path) -> None:
    result = train(unlearning(tmp_path, patience=3), tmp_path / "run")
    losses = {row["step"]: row["validation_loss"] for row in result.curve if "validation_loss" in row}
    assert result.best_step == min(losses, key=losses.__getitem__)
    assert result.best_loss == min(losses.values())
    assert result.steps == max(losses) == result.best_step + 3 < 20
    again = train(unlearning(tmp_path / "again", patience=0), tmp_path / "never")
    assert again.steps == 20
    assert again.curve[: len(result.curve)] == result.curve


def test_the_best_weights_are_those_of_the_best_validation(tmp_path: Path) -> None:
    plan = unlearning(tmp_path, patience=3)
    result = train(plan, tmp_path / "run")
    plan.steps = result.best_step
    until_best = train(plan, tmp_path / "short")
    # The schedule does not know the number of steps, so a shorter training is the beginning of a longer one.
    assert all(torch.equal(result.best[name], until_best.weights[name]) for name in result.best)
    assert not all(torch.equal(result.best[name], result.weights[name]) for name in result.best)


def test_early_stopping_is_the_same_killed_or_stopped_now_and_then(tmp_path: Path) -> None:
    plan = unlearning(tmp_path, patience=2)
    plan.save_every = 1  # a checkpoint of the last step, too, were it saved, would be gone on from
    expected = train(plan, tmp_path / "whole", Moments())
    for act, start in ((raise_killed, 1), (send_sigterm, 2)):
        for at in range(start, expected.moments + 1, 4):
            folder = tmp_path / f"{act.__name__}-{at}"
            try:
                result = train(plan, folder, Moments(at, act))
            except Killed:
                result = None
            if result is None or result.stopped:
                result = train(plan, folder)
            assert_same(result, expected)
