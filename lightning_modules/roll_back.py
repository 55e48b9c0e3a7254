"""Going back to a checkpoint and leaving out the batches from there to a loss spike: files, and the batches that stay.

Chowdhery et al. 2022, arXiv:2204.02311, section 5.1: some 20 spikes of PaLM's loss were passed so; the batches did no
harm from another checkpoint. Costs hard links to files that are there anyway.
"""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_modules.batching import Batch
from lightning_modules.datamodule import Batches
from lightning_modules.disk import write_whole, writing

LIST = "left-out.json"


class RollBack(Exception):
    """The training is to start over from the newest checkpoint; `left_out` of its folder has grown."""


@dataclass(frozen=True)
class Spike:
    """A step (from 1) whose loss was too high, and the numbers of the batches that were left out for it."""

    step: int
    batches: list[int]


def spikes(folder: Path) -> list[Spike]:
    """Those rolled back from so far, in their order."""
    path = folder / LIST
    return [Spike(**entry) for entry in json.loads(path.read_text())] if path.exists() else []


def left_out(folder: Path) -> list[int]:
    """The numbers of all batches left out so far, in rising order."""
    return sorted(number for spike in spikes(folder) for number in spike.batches)


def batch_number(step: int, left_out: Sequence[int]) -> int:
    """The `step`-th (from 0) of the numbers from 0 on that are not among `left_out`, which rises."""
    for number in left_out:
        if number > step:
            break
        step += 1
    return step


class Skipping:
    """`Batches` without those left out. Still a pure function: of the batches' own, and the list."""

    def __init__(self, batches: Batches, left_out: Sequence[int]) -> None:
        """`left_out` rises."""
        self.batches, self.left_out, self.bytes_per_target = batches, left_out, batches.bytes_per_target

    @property
    def batches_per_epoch(self) -> int:
        """Of the batches' own, left out or not."""
        return self.batches.batches_per_epoch

    def training_batch(self, number: int, part: int, parts: int) -> Batch:
        """A share of the batch that is `number` once the others are left out."""
        return self.batches.training_batch(batch_number(number, self.left_out), part, parts)

    def validation_batches(self, part: int, parts: int) -> Iterator[Batch]:
        """All of them."""
        return self.batches.validation_batches(part, parts)


class ReturnPoint:
    """The checkpoint that a training goes back to: of the last multiple of `every` steps.

    Not simply the newest one, which may have been saved because the training was told to stop: where it goes back to
    must not depend on that. Such checkpoints push the older ones out of `folder`, and a validation since may have
    replaced the best weights, so both are kept here under a second name. So are those of the multiple before: where the
    newest checkpoint cannot be read, training goes on from there, and the best weights of then cannot be had anew.
    """

    def __init__(self, folder: Path, every: int) -> None:
        self.folder, self.every = folder, every

    def keep(self, step: int) -> None:
        """Called where training goes on after `step` steps, whatever was to be saved there is.

        Nothing is done the second time: since the first, the best weights may be of a later validation. Raises
        PipelineError where it cannot be written.
        """
        kept = self._kept(step)
        if self.before(step) != step or kept.exists():
            return
        unfinished = kept.with_suffix(".unfinished")
        with writing(kept):
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            for name in (_checkpoint(step), "best.safetensors"):
                if (self.folder / name).exists():
                    _link(self.folder / name, unfinished / name)
            unfinished.replace(kept)
        for other in self.folder.glob("return-*"):
            if other not in (kept, self._kept(step - self.every)):
                shutil.rmtree(other)

    def before(self, step: int) -> int:
        """Where a training that has made `step` steps goes back to."""
        return step // self.every * self.every

    def go_back(self, step: int) -> None:
        """Puts `folder` back to what it was after `step` steps. Raises PipelineError where it cannot be written.

        Killed in the middle, the training meets the same spike again, and this is done again; so the list of batches
        left out, which changes that, must be written last.
        """
        kept, best = self._kept(step), self.folder / "best.safetensors"
        with writing(self.folder):
            _link(kept / _checkpoint(step), self.folder / _checkpoint(step))
            if (kept / best.name).exists():
                _link(kept / best.name, best)
            else:
                best.unlink(missing_ok=True)
        for path in self.folder.glob("step-*.ckpt"):
            if path.name > _checkpoint(step):
                path.unlink()
        for path in self.folder.glob("return-*"):  # there where a damaged checkpoint was gone back behind
            if path.name > kept.name:
                shutil.rmtree(path)

    def _kept(self, step: int) -> Path:
        return self.folder / f"return-{step:09d}"


def _checkpoint(step: int) -> str:
    return f"step-{step:09d}.ckpt"


def leave_out(folder: Path, step: int, back: int) -> Spike:
    """Adds the batches of the steps after `back` up to `step` (both from 1) to the list, whole or not at all.

    Raises PipelineError where it cannot be written.
    """
    known, gone = spikes(folder), left_out(folder)
    spike = Spike(step, [batch_number(number, gone) for number in range(back, step)])
    entries: list[dict[str, Any]] = [vars(entry) for entry in (*known, spike)]
    write_whole(folder / LIST, lambda unfinished: unfinished.write_text(json.dumps(entries)))
    return spike


def _link(source: Path, target: Path) -> None:
    """Gives a file a second name, in place of what bore it; where there are no hard links, a copy."""
    unfinished = target.with_name(f"{target.name}.unfinished")
    unfinished.unlink(missing_ok=True)
    try:
        os.link(source, unfinished)
    except OSError:
        shutil.copyfile(source, unfinished)
    unfinished.replace(target)
