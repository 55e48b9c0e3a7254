"""What keeps a training from going wrong unseen: numbers that are not finite, and spikes of the loss.

On a CPU this costs nothing that can be measured. On a GPU nobody waits for a step's gradient: its length is on its way
to the host while the next forward pass is put in line. For the loss the host waits until the forward pass is done: it
works ahead by half a step at most. With several processes each step has one more reduction, of one number; they wait
for each other anyway, to stop at the same step (`callbacks.StopOnSignal`).
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import inf, isfinite, sqrt
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from lightning_modules.batching import Batch
from lightning_modules.callbacks import save_checkpoint, step_done, validation_follows
from lightning_modules.disk import write_whole
from lightning_modules.errors import PipelineError
from lightning_modules.launch import require_same_step
from lightning_modules.lightning import pl
from lightning_modules.module import TransformerModule
from lightning_modules.roll_back import ReturnPoint, RollBack, leave_out, spikes

RATE = 0.02  # weight of a step in the running mean of the loss: it looks back some 50 steps
WARM_STEPS = 50  # not judged: the mean is not yet known, and the loss falls fast
SPIKE_DEVIATIONS = 6.0  # above the mean
MAX_ROLL_BACKS = 8
NAMES_TOLD = 3  # of parameters whose gradient is not finite


class TrainingFailed(PipelineError):
    """It cannot go on. Raised by all ranks at the same step, with the same reason."""


@dataclass
class RunningLoss:
    """Mean and variance of the loss, older steps counting less and less."""

    count: int = 0
    mean: float = 0.0
    variance: float = 0.0

    @property
    def limit(self) -> float:
        """A higher loss is a spike."""
        return inf if self.count < WARM_STEPS else self.mean + SPIKE_DEVIATIONS * sqrt(self.variance)

    def take(self, loss: float) -> None:
        """Counts a step. A spike counts as the highest loss that is none: a lasting rise soon ceases to be one."""
        loss = min(loss, self.limit)
        self.count += 1
        rate = max(RATE, 1 / self.count)
        difference = loss - self.mean
        self.mean += rate * difference
        self.variance = (1 - rate) * (self.variance + rate * difference**2)


class StepGuard(pl.Callback):
    """Ends a training whose loss or gradient is not finite; passes a step by, or goes back, where the loss spikes.

    A step with a bad gradient is made, and noticed before anything else could be: its weights are never saved or
    validated, and the process ends. That spares the device a wait, or each step a pass over all gradients.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        on_spike: str,
        every: int,
        keep: int,
        log: Callable[[dict[str, float], int], None] | None,
    ) -> None:
        """`on_spike`: ignore, skip or roll_back; `every`, `keep`: of the checkpoints in `folder`.

        With `roll_back` the batches must be `Skipping` those left out there, and RollBack must be caught.
        """
        self.name, self.folder, self.on_spike, self.keep, self.record = name, folder, on_spike, keep, log
        self.return_point = ReturnPoint(folder, every)
        self.running, self.skipped = RunningLoss(), 0
        self.loss = 0.0  # of the last step, nats per target token of all ranks
        self._batches: list[Batch] = []  # of the step that is being made
        self._unchecked: list[Batch] | None = None  # of a step whose gradient has not been looked at
        self._loss: _Arriving | None = None
        self._norm: _Arriving | None = None
        self._last_part = False

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, saved in every checkpoint: a resumed run judges as the uninterrupted one would."""
        return {"running": asdict(self.running), "skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes them up again."""
        self.running, self.skipped = RunningLoss(**state_dict["running"]), state_dict["skipped"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The first weights, too, may have to be gone back to."""
        if self.on_spike == "roll_back":
            require_same_step(trainer)  # one that goes on from a checkpoint takes no part in saving another
            if trainer.global_step == 0:
                save_checkpoint(trainer, self.folder, self.keep)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Sends for the length of the last step's gradient; keeps the batch, in case it is the bad one."""
        assert isinstance(pl_module, TransformerModule)
        self._last_part = step_done(trainer, batch_idx)
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._batches = []
            if self._unchecked is not None:
                self._norm = _Arriving(pl_module.gradient_norm)
            if self.on_spike == "roll_back" and trainer.is_global_zero:
                self.return_point.keep(trainer.global_step)
        self._batches.append(batch)

    def on_before_zero_grad(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """The last moment at which the last step's gradient is there to be named."""
        self._check_gradient(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """So it is before a validation, which sets gradients to None."""
        if step_done(trainer, batch_idx) and validation_follows(trainer):
            self._check_gradient(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Nothing bad is saved."""
        self._check_gradient(trainer, pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Nor validated, and kept as the best."""
        self._check_gradient(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Where no weights have a finite loss on held-out text, none can be the best. All ranks see the same."""
        assert isinstance(pl_module, TransformerModule)
        losses = pl_module.validation_losses
        if not any(map(isfinite, losses.values())):
            told = ", ".join(f"{loss} of the {weights} weights" for weights, loss in losses.items())
            raise TrainingFailed(
                f"{self.name}: not finite at step {trainer.global_step}: the validation loss ({told}). Checkpoints are "
                "from before it. Lower learning_rate, lengthen warmup_steps, or set precision to 32-true"
            )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Nor is it the end."""
        self._check_gradient(trainer, pl_module)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Sends for the loss of the whole step."""
        if self._last_part:
            assert isinstance(pl_module, TransformerModule)
            whole = pl_module.train_loss
            if trainer.world_size > 1:  # each rank holds its part of the sum times the number of ranks
                whole = trainer.strategy.reduce(whole.clone(), reduce_op="mean")  # type: ignore[assignment]
            self._loss = _Arriving(whole)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Judges the loss."""
        assert self._loss is not None
        self.loss, step = self._loss.number(), trainer.global_step + 1
        if not isfinite(self.loss):
            self._fail(trainer, pl_module, step, self.loss, self._batches)
        self._unchecked = self._batches
        limit, mean = self.running.limit, self.running.mean
        self.running.take(self.loss)
        if self.on_spike != "ignore" and self.loss > limit:
            told = f"loss {self.loss:.3f} at step {step}, about {mean:.3f} before, is a spike"
            if self.on_spike == "skip":
                self._skip(trainer, pl_module, step, told)
            else:
                self._roll_back(trainer, step, told)

    def _skip(self, trainer: pl.Trainer, module: pl.LightningModule, step: int, told: str) -> None:
        module.zero_grad()  # no gradient at all, unlike one of zeros, leaves an optimiser's weights and momenta alone
        self.skipped += 1
        if trainer.is_global_zero:
            print(f"{self.name}: {told}: not learnt from ({self.skipped} such steps so far)", flush=True)
        if self.record:
            self.record({"skipped_steps": self.skipped}, step)

    def _roll_back(self, trainer: pl.Trainer, step: int, told: str) -> None:
        count = len(spikes(self.folder)) + 1
        if count > MAX_ROLL_BACKS:
            raise TrainingFailed(
                f"{told}, after {MAX_ROLL_BACKS} others that were rolled back: lower learning_rate, lengthen "
                f"warmup_steps, or set on_loss_spike to skip; the batches left out so far are in {self.folder}"
            )
        back = self.return_point.before(step - 1)
        trainer.strategy.barrier()  # everybody has counted
        if trainer.is_global_zero:
            self.return_point.go_back(back)
            leave_out(self.folder, step, back)
        trainer.strategy.barrier()  # the first process has written
        if self.record:
            self.record({"roll_backs": count}, step)
        raise RollBack(f"{told}: back to step {back}, leaving out the {step - back} batches since")

    def _check_gradient(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self._unchecked is None:
            return
        assert isinstance(module, TransformerModule)
        norm = float(module.gradient_norm) if self._norm is None else self._norm.number()
        batches, self._unchecked, self._norm = self._unchecked, None, None
        if not isfinite(norm):
            self._fail(trainer, module, trainer.global_step, self.loss, batches)

    def _fail(
        self, trainer: pl.Trainer, module: pl.LightningModule, step: int, loss: float, batches: list[Batch]
    ) -> None:
        assert isinstance(module, TransformerModule)
        rank = f"-rank-{trainer.global_rank}" if trainer.global_rank else ""
        path = self.folder / f"bad-batch-step-{step}{rank}.safetensors"
        try:
            save_batches(path, batches)
            where = f"is in {path}"
        except PipelineError as error:  # which must not hide why there is something to be written
            where = f"could not be kept ({error})"
        what = [] if isfinite(loss) else [f"the loss ({loss})"]
        gradients = {name: parameter.grad for name, parameter in module.model.named_parameters()}
        bad = [name for name, gradient in gradients.items() if gradient is not None and not gradient.isfinite().all()]
        more = f" and {len(bad) - NAMES_TOLD} more" if len(bad) > NAMES_TOLD else ""
        if bad or not what:
            what.append(f"the gradient of {', '.join(bad[:NAMES_TOLD])}{more}" if bad else "the length of the gradient")
        raise TrainingFailed(
            f"{self.name}: not finite at step {step}: {'; '.join(what)}. The batch {where}; checkpoints are from "
            "before it. Lower learning_rate, lengthen warmup_steps, or set precision to 32-true"
        )


class _Arriving:
    """A number on its way from the device, which goes on working meanwhile."""

    def __init__(self, value: Tensor) -> None:
        self._value = value.detach().to("cpu", non_blocking=True)
        self._event = torch.cuda.Event() if value.is_cuda else None  # type: ignore[no-untyped-call]
        if self._event is not None:
            self._event.record()

    def number(self) -> float:
        """Waits for it."""
        if self._event is not None:
            self._event.synchronize()
        return float(self._value)


def save_batches(path: Path, batches: list[Batch]) -> None:
    """Writes the tensors of a step's batches, several where gradients are accumulated, as PART.FIELD: 0.source_BS.

    Raises PipelineError where it cannot.
    """
    tensors: dict[str, Tensor] = {}
    for part, batch in enumerate(batches):
        for field, value in batch._asdict().items():
            if isinstance(value, Tensor):
                tensors[f"{part}.{field}"] = value.contiguous()
            elif isinstance(value, tuple):
                tensors |= {f"{part}.{field}.{side}": tensor.contiguous() for side, tensor in enumerate(value)}
    write_whole(path, lambda unfinished: save_file(tensors, unfinished))
