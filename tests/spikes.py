"""Trainings of a dozen steps whose loss spikes at a step chosen beforehand.

As a program: one on two processes, rolled back where it spikes, for test_roll_back.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import interruptions
import pytorch_lightning as pl
import tiny
import torch
from interruptions import Plan, Result, train
from tiny import rows_split

from lightning_modules import guards
from lightning_modules.batching import Batch
from lightning_modules.datamodule import Batches
from lightning_modules.guards import StepGuard
from lightning_modules.roll_back import RollBack, Skipping, left_out

SOON = {"WARM_STEPS": 4, "SPIKE_DEVIATIONS": 3.0}  # of lightning_modules.guards, for trainings so short


class Spoilt:
    """A split some of whose training batches ask for one rare token everywhere, and count thrice."""

    def __init__(self, batches: Batches, spoilt: set[int]) -> None:
        self.batches, self.spoilt = batches, spoilt
        self.batches_per_epoch, self.bytes_per_target = batches.batches_per_epoch, batches.bytes_per_target

    def training_batch(self, number: int, part: int, parts: int) -> Batch:
        batch = self.batches.training_batch(number, part, parts)
        if number not in self.spoilt:
            return batch
        rare_BT = torch.where(batch.target_BT == 0, 0, 69 + number % 7)
        return batch._replace(target_BT=rare_BT, targets=batch.targets // 3)

    def validation_batches(self, part: int, parts: int) -> Iterator[Batch]:
        return self.batches.validation_batches(part, parts)


def guard(folder: Path, plan: Plan, on_spike: str = "ignore", log: Any = None) -> StepGuard:
    return StepGuard("test", folder, on_spike, plan.save_every, 2, log)


def plan_of(root: Path, **changes: Any) -> Plan:
    return Plan(rows_split(root / "store"), **({"steps": 8, "save_every": 2, "validate_every": 3} | changes))


def spiky(root: Path, spoilt: set[int], **changes: Any) -> Plan:
    plan = plan_of(root, **({"steps": 11, "save_every": 2, "validate_every": 3, "learning_rate": 5e-3} | changes))
    return replace(plan, split=Spoilt(plan.split, spoilt))


def roll(plan: Plan, folder: Path, *callbacks: pl.Callback) -> Result:
    """As stages/training.py does it: again and again from the newest checkpoint."""
    while True:
        now = replace(plan, split=Skipping(plan.split, left_out(folder)))
        try:
            return train(now, folder, guard(folder, plan, "roll_back"), *callbacks)
        except RollBack:
            pass


if __name__ == "__main__":
    for name, value in SOON.items():
        setattr(guards, name, value)
    interruptions.tiny.trainer = partial(tiny.trainer, devices=2, strategy="ddp")
    root = Path(sys.argv[1])
    result = roll(spiky(root, {6, 9}, save_every=3, validate_every=2), root / "run")
    if torch.distributed.get_rank() == 0:
        losses = [row["train_loss"] for row in result.curve if "train_loss" in row]
        (root / "result.json").write_text(json.dumps({"steps": result.steps, "losses": losses}))
