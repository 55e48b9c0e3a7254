"""The Trainer, built in one place: devices, strategy, precision, threads."""

import logging
import warnings
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException

from lightning_modules.allocator import keep_memory
from lightning_modules.errors import PipelineError


@dataclass(frozen=True)
class Hardware:
    """Where to train; each may be `auto`."""

    accelerator: str
    devices: int | str
    num_nodes: int
    strategy: str
    precision: str
    threads: int | str


def build_trainer(
    hardware: Hardware, steps: int, validate_every: int, gradient_clip: float, callbacks: list[pl.Callback]
) -> pl.Trainer:
    """A Trainer that counts optimiser steps, never epochs, and writes nothing of its own accord.

    `auto` becomes: all GPUs, else the CPU as one process; DDP where there are several processes; bf16 on GPUs, fp32 on
    CPUs (bf16 autocast on a CPU without matrix units measured 0.66× of fp32). Raises PipelineError where the machine
    has not the devices asked for.
    """
    on_gpu = hardware.accelerator in ("gpu", "cuda") or (hardware.accelerator == "auto" and torch.cuda.is_available())
    keep_memory()
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # its advertisements and lists of absent devices
    warnings.filterwarnings("ignore", module="pytorch_lightning.utilities._pytree")  # torch's deprecation, not ours
    if hardware.threads != "auto":
        torch.set_num_threads(int(hardware.threads))
    if on_gpu:
        torch.set_float32_matmul_precision("high")  # TF32 for what autocast leaves in fp32
    precision: Any = hardware.precision
    if precision == "auto":
        precision = "bf16-mixed" if on_gpu else "32-true"
    devices: Any = hardware.devices
    if devices == "auto" and not on_gpu:
        devices = 1
    try:
        return pl.Trainer(
            accelerator="gpu" if on_gpu else "cpu",
            devices=devices,
            num_nodes=hardware.num_nodes,
            strategy=hardware.strategy,
            precision=precision,
            max_steps=steps,
            max_epochs=-1,
            val_check_interval=validate_every,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            gradient_clip_val=gradient_clip or None,
            use_distributed_sampler=False,
            callbacks=callbacks,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    except MisconfigurationException as error:
        problem = " ".join(str(error).split())
        raise PipelineError(
            f"accelerator {hardware.accelerator}, devices {hardware.devices}, strategy {hardware.strategy} do not fit "
            f"this machine: {problem}"
        ) from error
