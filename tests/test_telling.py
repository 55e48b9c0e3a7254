"""What is told of a training, against numbers counted otherwise."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import tiny
import torch
from interruptions import Plan, train
from tiny import config, pairs_split, recipe, rows_split
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from flows.progress import parse_progress
from flows.time_left import bar_left
from lightning_modules import telling as told_of
from lightning_modules.batching import Batch
from lightning_modules.datamodule import Batches, TextDataModule
from lightning_modules.loss import batch_loss
from lightning_modules.model_folder import new_model
from lightning_modules.module import TransformerModule
from lightning_modules.peak import matmul_peak
from lightning_modules.telling import StepsApart, StepTimes, Telling

STEPS = 4


def told(split: Batches, accumulate: int = 1, *others: pl.Callback) -> tuple[Telling, TransformerModule, list[str]]:
    """A training, with a row for each step, and what its bar said."""
    lines: list[str] = []

    class Bar(tqdm):  # type: ignore[type-arg]
        def set_postfix_str(self, s: str = "", refresh: bool = True) -> None:
            lines.append(s)

    telling = Telling("test", STEPS, 1, lambda total, **_: Bar(total=total, disable=True), None)
    module = TransformerModule(new_model(config(), 0), recipe(steps=STEPS))
    trainer = tiny.trainer(STEPS, 2, 1.0, [telling, *others], accumulate)
    trainer.fit(module, TextDataModule(split, split))
    return telling, module, lines


@pytest.mark.parametrize("accumulate", [1, 2])
def test_padding_is_counted_and_flops_are_those_that_torch_counts(tmp_path: Path, accumulate: int) -> None:
    split = pairs_split(tmp_path)
    telling, _, _ = told(split, accumulate)
    flops = tokens = padding = 0
    for number in range(STEPS):
        for part in range(accumulate):
            batch, model = split.training_batch(number, part, accumulate), new_model(config(), 0)
            with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
                loss, _ = batch_loss(model, batch, 0.0)
                loss.backward()  # type: ignore[no-untyped-call]
            flops += counter.get_total_flops()
            for side in (batch.source_BS, batch.target_BT):
                tokens, padding = tokens + side.numel(), padding + int((side == 0).sum())
    assert (telling.counts["tokens"], telling.counts["padding"]) == (tokens, padding)
    assert padding > 0
    # Ours takes a part to predict as much as the others do.
    assert telling.counts["flops"] == pytest.approx(flops, rel=0.05)
    assert telling.share_of_peak == pytest.approx(telling.counts["flops"] / telling.seconds / telling.peak)


def test_bits_per_byte_are_the_losss_over_the_texts_bytes(tmp_path: Path) -> None:
    split = rows_split(tmp_path, objective="causal_lm", architecture="decoder")
    split.bytes_per_target = 3.5
    telling = Telling("test", STEPS, 1, lambda **_: tqdm(disable=True), None)
    module = TransformerModule(new_model(config(architecture="decoder"), 0), recipe(steps=STEPS))
    tiny.trainer(STEPS, 2, 1.0, [telling]).fit(module, TextDataModule(split, split))
    rows = [row for row in telling.rows if "validation_loss" in row]
    assert len(rows) == 2
    for row in rows:  # a model that spreads its guesses over 2ᵇ texts of as many bytes as there are
        assert row["validation_bits_per_byte"] * 3.5 == pytest.approx(row["validation_loss"] / log(2))
    assert telling.rows[0]["train_bits_per_byte"] == pytest.approx(telling.rows[0]["train_loss"] / log(2) / 3.5)


def test_the_bar_and_the_rows_tell_all_there_is_to_know(tmp_path: Path) -> None:
    telling, module, lines = told(rows_split(tmp_path))
    assert len(lines) == STEPS
    for word in ("loss ", "bits/byte", "|g| ", "lr ", "tokens/s", "% of peak", "% padding"):
        assert word in lines[-1]
    last = [row for row in telling.rows if "train_loss" in row][-1]
    assert last["gradient_norm"] == pytest.approx(float(module.gradient_norm))
    assert last["padding_share"] == 0
    assert 0 < last["share_of_peak"] < 1
    assert f"loss {last['train_loss']:.3f}" in lines[-1]


def test_the_parts_of_a_step_add_up_to_its_time(tmp_path: Path) -> None:
    times: list[tuple[dict[str, float], int]] = []
    parts = StepTimes(2, lambda values, step: times.append((values, step)))
    telling, _, _ = told(rows_split(tmp_path), 2, parts, StepsApart(parts))
    assert [step for _, step in times] == [2, 4]
    assert all(set(values) == {"data_ms", "forward_ms", "backward_ms", "optimizer_ms"} for values, _ in times)
    assert all(value > 0 for values, _ in times for value in values.values())
    spent = sum(2 * sum(values.values()) for values, _ in times) / 1000
    assert spent < telling.seconds


@dataclass
class Clock:
    """Goes on when told to."""

    now: float = 0.0

    def perf_counter(self) -> float:
        return self.now


class Slow(pl.Callback):
    """Each part of a step takes its own time: forward 10 s, backward 100 s, optimiser 1000 s."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_before_backward(self, *_: Any) -> None:
        self.clock.now += 10

    def on_after_backward(self, *_: Any) -> None:
        self.clock.now += 100

    def on_before_optimizer_step(self, *_: Any) -> None:
        self.clock.now += 1000


class SlowSaving(pl.Callback):
    """Hours between steps, and in a validation."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_batch_end(self, *_: Any) -> None:
        self.clock.now += 10_000

    on_train_start = on_validation_start = on_validation_end = on_train_batch_end


@dataclass
class SlowData:
    """A second a batch."""

    split: Batches
    clock: Clock
    bytes_per_target: float | None = None
    batches_per_epoch: int = 10

    def training_batch(self, number: int, part: int, parts: int) -> Batch:
        self.clock.now += 1
        return self.split.training_batch(number, part, parts)

    def validation_batches(self, part: int, parts: int) -> Iterator[Batch]:
        return self.split.validation_batches(part, parts)


def test_each_part_of_a_step_is_told_under_its_name_and_saving_under_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, times = Clock(), list[tuple[dict[str, float], int]]()
    monkeypatch.setattr(told_of, "time", clock)
    parts = StepTimes(2, lambda values, step: times.append((values, step)))
    split = SlowData(rows_split(tmp_path), clock)
    trainer = tiny.trainer(STEPS, 2, 1.0, [Slow(clock), parts, SlowSaving(clock), StepsApart(parts)])
    trainer.fit(TransformerModule(new_model(config(), 0), recipe(steps=STEPS)), TextDataModule(split, split))
    expected = {"data_ms": 1e3, "forward_ms": 1e4, "backward_ms": 1e5, "optimizer_ms": 1e6}
    assert times == [(pytest.approx(expected), 2), (pytest.approx(expected), 4)]


def test_a_bar_that_goes_on_counts_no_step_that_was_made_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that goes on by a second a step, wherever a training begins."""
    clock, screen = Clock(), io.StringIO()
    monkeypatch.setattr("tqdm.std.time", clock.perf_counter)

    class Steps(pl.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            clock.now += 1

    def bar(total: int, name: str, unit: str) -> "tqdm[Any]":
        return tqdm(total=total, desc=name, unit=unit, file=screen, mininterval=0, ncols=120)

    split, folder = rows_split(tmp_path / "store"), tmp_path / "run"
    train(Plan(split, steps=40, save_every=40), folder)
    train(Plan(split, steps=50, save_every=50), folder, Steps(), bar=bar)
    lines = [line for line in map(parse_progress, screen.getvalue().split("\r")) if line and "step/s" in line.text]
    said = {line.text.split(",")[0]: line.text for line in lines if "?" not in line.text}
    assert list(said) == [f"{step}/50" for step in range(41, 51)]
    assert all("1.00step/s" in text for text in said.values())
    assert [bar_left(text) for text in said.values()] == [float(50 - step) for step in range(41, 51)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_peak_is_a_speed_that_a_processor_has(dtype: torch.dtype) -> None:
    peak = matmul_peak(torch.device("cpu"), dtype)
    assert np.isfinite(peak)
    assert peak > 1e8  # bf16 without instructions for it reaches a gigaflop a second


def test_the_bar_is_closed_when_a_training_fails(tmp_path: Path) -> None:
    class Fails(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            raise ZeroDivisionError

    bar = tqdm(total=STEPS)
    telling = Telling("test", STEPS, 1, lambda **_: bar, None)
    split = rows_split(tmp_path)
    trainer = tiny.trainer(STEPS, 2, 1.0, [telling, Fails()])
    with pytest.raises(ZeroDivisionError):
        trainer.fit(TransformerModule(new_model(config(), 0), recipe(steps=STEPS)), TextDataModule(split, split))
    assert bar.disable  # as close() leaves it
