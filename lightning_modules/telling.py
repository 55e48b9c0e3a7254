"""Told while it trains: a progress bar, the learning curve, the share of the device's peak, where a step's time goes.

Numbers are read from the device each `every` steps only, a hundred times in a training.
"""

import time
from collections.abc import Callable
from math import log
from typing import Any

import torch
from tqdm import tqdm

from lightning_modules.batching import Batch
from lightning_modules.callbacks import step_done
from lightning_modules.datamodule import TextDataModule
from lightning_modules.flops import Shape, step_flops
from lightning_modules.lightning import pl
from lightning_modules.module import TransformerModule
from lightning_modules.parallel import data_rank
from lightning_modules.peak import matmul_peak
from lightning_modules.transformer.heads import Classifier, SpanReader

Metrics = dict[str, float]


class Telling(pl.Callback):
    """A progress bar, and the learning curve: a row each `every` steps and each validation.

    Rows are kept in checkpoints, so the curve of a resumed run is whole.
    """

    def __init__(
        self,
        name: str,
        steps: int,
        every: int,
        bar: Callable[..., "tqdm[Any]"],
        log: Callable[[Metrics, int], None] | None,
    ) -> None:
        """`bar(total=…, name=…, unit=…)` makes the progress bar; `log` receives (metrics, step) as they come."""
        self.name, self.steps, self.every, self.make_bar, self.record = name, steps, every, bar, log
        self.rows: list[Metrics] = []
        # Over all processes that worked on this run: positions of both stacks on all devices, those of them that hold
        # no text, and FLOPs of one device. Seconds include validation.
        self.counts = {"tokens": 0, "padding": 0, "flops": 0}
        self.seconds = 0.0
        self.peak, self.precision = 0.0, ""  # FLOP/s of a device, and in which numbers
        self.on_gpu, self.devices = False, 0
        self._clock = 0.0
        self._mark: dict[str, float] = {"seconds": 0.0, **self.counts}  # at the last row
        self._bar: tqdm[Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The curve so far, what it cost, and on what: one that goes on from its last step does not start again."""
        return {
            "rows": self.rows,
            "counts": self.counts,
            "seconds": self.seconds,
            "mark": self._mark,
            "peak": self.peak,
            "precision": self.precision,
            "on_gpu": self.on_gpu,
            "devices": self.devices,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes them up again."""
        self.rows, self.counts = list(state_dict["rows"]), dict(state_dict["counts"])
        self.seconds, self._mark = state_dict["seconds"], state_dict["mark"]
        self.peak, self.precision = state_dict["peak"], state_dict["precision"]
        self.on_gpu, self.devices = state_dict["on_gpu"], state_dict["devices"]

    def validated(self, step: int) -> bool:
        """Whether the weights after `step` have been validated."""
        return any(row["step"] == step and "validation_loss" in row for row in self.rows)

    @property
    def share_of_peak(self) -> float:
        """Model FLOPs utilisation over the whole training (Chowdhery et al. 2022, arXiv:2204.02311, appendix B)."""
        return self.counts["flops"] / max(self.seconds, 1e-9) / self.peak if self.peak else 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measures the device, and opens the bar at the step that training starts from, which took it no time."""
        self.precision, self.devices = str(trainer.precision), trainer.world_size
        self.on_gpu = pl_module.device.type == "cuda"
        half = self.precision.startswith("bf16")
        self.peak = matmul_peak(pl_module.device, torch.bfloat16 if half else torch.float32)
        if trainer.is_global_zero:
            self._bar = self.make_bar(total=self.steps, name=self.name, unit="step")
            self._bar.initial = self._bar.n = self._bar.last_print_n = trainer.global_step
            self._bar.refresh()
        self._clock = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Counts; at the end of a step moves the bar; each `every` steps adds a row."""
        assert isinstance(pl_module, TransformerModule)
        now = time.perf_counter()
        self.seconds, self._clock = self.seconds + now - self._clock, now
        self._count(trainer, pl_module, batch)
        if not step_done(trainer, batch_idx):
            return
        if self._bar is not None:
            self._bar.update()
        if trainer.global_step % self.every == 0:
            self._tell(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Adds the validation loss, of the weights as they are and averaged, and their scores where they have one."""
        assert isinstance(pl_module, TransformerModule)
        losses = pl_module.validation_losses
        row = {
            f"validation_{what}{'' if name == 'raw' else f'_{name}'}": value
            for what, values in (("loss", losses), ("score", pl_module.validation_scores))
            for name, value in values.items()
        }
        self._add(row | _bits_per_byte(trainer, "validation", min(losses.values())), trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Closes the bar."""
        if self._bar is not None:
            self._bar.close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Closes the bar, so that what is said of the error has a line of its own."""
        self.on_train_end(trainer, pl_module)

    def _count(self, trainer: pl.Trainer, module: TransformerModule, batch: Batch) -> None:
        config, (_, ranks) = module.model.config, data_rank(trainer)
        rows, source = batch.source_BS.shape
        written = 0 if config.architecture == "encoder" else batch.target_BT.shape[1]
        predicted = 0  # with the vocabulary's head
        if not isinstance(module.model, SpanReader | Classifier):
            predicted = batch.targets // (ranks * trainer.accumulate_grad_batches)
        self.counts["tokens"] += rows * (source + written) * ranks
        self.counts["padding"] += batch.padding * ranks
        shared = trainer.world_size // ranks  # by so many devices that split a model
        self.counts["flops"] += step_flops(config, Shape(rows, source, written, predicted)) // shared

    def _tell(self, trainer: pl.Trainer, module: TransformerModule) -> None:
        now = {"seconds": self.seconds, **self.counts}
        since = {name: value - self._mark[name] for name, value in now.items()}
        self._mark = now
        loss = module.train_loss
        if trainer.world_size > 1:  # each rank holds its part of the sum times the number of ranks
            loss = trainer.strategy.reduce(loss, reduce_op="mean")  # type: ignore[assignment]
        row = {
            "train_loss": float(loss),
            "gradient_norm": float(module.gradient_norm),
            "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
            "tokens_per_second": since["tokens"] / since["seconds"],
            "share_of_peak": since["flops"] / since["seconds"] / self.peak,
            "padding_share": since["padding"] / since["tokens"],
        } | _bits_per_byte(trainer, "train", float(loss))
        # As fast as so far, validations included.
        left = self.seconds / trainer.global_step * (self.steps - trainer.global_step)
        self._add(row, trainer, {"seconds_left": left})
        if self._bar is not None:
            self._bar.set_postfix_str(_in_short(row), refresh=False)

    def _add(self, metrics: Metrics, trainer: pl.Trainer, passing: Metrics | None = None) -> None:
        """A row; what is `passing` is of interest while it trains, and not in the curve."""
        self.rows.append({"step": trainer.global_step, **metrics})
        if self.record:
            self.record(metrics | (passing or {}), trainer.global_step)


def _bits_per_byte(trainer: pl.Trainer, split: str, loss: float) -> Metrics:
    """A loss in nats per target token as bits per byte of the targets' text, which any tokenizer's can be beside."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(data, TextDataModule)
    size = (data.train if split == "train" else data.validation).bytes_per_target
    return {} if size is None else {f"{split}_bits_per_byte": loss / log(2) / size}


def _in_short(row: Metrics) -> str:
    bits = f" {row['train_bits_per_byte']:.2f} bits/byte" if "train_bits_per_byte" in row else ""
    return (
        f"loss {row['train_loss']:.3f}{bits} |g| {row['gradient_norm']:.2f} lr {row['learning_rate']:.1e} "
        f"{row['tokens_per_second']:,.0f} tokens/s, {row['share_of_peak']:.0%} of peak, "
        f"{row['padding_share']:.0%} padding"
    )


class StepTimes(pl.Callback):
    """Where a step's time goes: waiting for data, forward, backward, and the rest: clipping and the optimiser.

    First of the callbacks; with `StepsApart` as the last of them, what they do between two steps, saving above all, is
    no part of either. Waits for the device after each part, which costs a GPU some speed.
    """

    PARTS = ("data", "forward", "backward", "optimizer")

    def __init__(self, every: int, log: Callable[[Metrics, int], None]) -> None:
        """`log` receives milliseconds a step, means of each `every` steps."""
        self.every, self.record = every, log
        self._spent, self._since, self._clock = dict.fromkeys(self.PARTS, 0.0), 0, 0.0

    def start(self) -> None:
        """A step begins: its data is waited for."""
        self._clock = time.perf_counter()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """The batch is there."""
        self._took("data", pl_module)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: torch.Tensor) -> None:
        """The loss is there."""
        self._took("forward", pl_module)

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The gradient is there."""
        self._took("backward", pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """The step is made, or its next part is up."""
        self._took("optimizer", pl_module)
        if not step_done(trainer, batch_idx):
            return
        self._since += 1
        if trainer.global_step % self.every == 0:
            self.record({f"{part}_ms": 1000 * s / self._since for part, s in self._spent.items()}, trainer.global_step)
            self._spent, self._since = dict.fromkeys(self.PARTS, 0.0), 0

    def _took(self, part: str, module: pl.LightningModule) -> None:
        if module.device.type == "cuda":
            torch.cuda.synchronize(module.device)
        now = time.perf_counter()
        self._spent[part] += now - self._clock
        self._clock = now


class StepsApart(pl.Callback):
    """Starts the clock of `StepTimes` when all other callbacks have done what they do before a step."""

    def __init__(self, times: StepTimes) -> None:
        self.times = times

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Before the first."""
        self.times.start()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """After each."""
        self.times.start()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """After a validation, which is no part of a step."""
        self.times.start()
