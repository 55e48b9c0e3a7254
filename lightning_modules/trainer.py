"""The Trainer, built in one place."""

import logging
import warnings
from typing import Any

import torch

from lightning_modules.allocator import keep_memory
from lightning_modules.checkpoint_files import CheckpointFiles
from lightning_modules.errors import PipelineError
from lightning_modules.hardware import Choice, Hardware
from lightning_modules.launch import bound_waiting, require_launched
from lightning_modules.lightning import MisconfigurationException, pl
from lightning_modules.parallel import SHARDED, make_strategy


def build_trainer(
    hardware: Hardware,
    choice: Choice,
    steps: int,
    accumulate: int,
    validate_every: int,
    gradient_clip: float,
    callbacks: list[pl.Callback],
) -> pl.Trainer:
    """A Trainer that counts optimiser steps, never epochs, and writes nothing of its own accord.

    `auto` devices are all GPUs, else the CPU as one process; several processes work by DDP. Raises PipelineError where
    the machine has not the devices asked for.
    """
    keep_memory()
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # its advertisements and lists of absent devices
    warnings.filterwarnings("ignore", module="pytorch_lightning.utilities._pytree")  # torch's deprecation, not ours
    if hardware.threads != "auto":
        torch.set_num_threads(int(hardware.threads))
    if choice.on_gpu:
        torch.set_float32_matmul_precision("high")  # TF32 for what autocast leaves in fp32
    devices: Any = hardware.devices
    if devices == "auto" and not choice.on_gpu:
        devices = 1
    precision: Any = choice.precision
    try:
        trainer = pl.Trainer(
            accelerator="gpu" if choice.on_gpu else "cpu",
            devices=devices,
            num_nodes=hardware.num_nodes,
            strategy=make_strategy(hardware.strategy),
            inference_mode=hardware.strategy not in SHARDED,  # its tensors could not be trained on after it
            precision=precision,
            max_steps=steps,
            max_epochs=-1,
            accumulate_grad_batches=accumulate,
            val_check_interval=validate_every * accumulate,  # Lightning counts batches
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            gradient_clip_val=gradient_clip or None,
            use_distributed_sampler=False,
            callbacks=callbacks,
            plugins=[CheckpointFiles()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        bound_waiting(trainer.strategy)
        require_launched(trainer.num_devices, trainer.num_nodes)
        return trainer
    except MisconfigurationException as error:
        problem = " ".join(str(error).split())
        raise PipelineError(
            f"accelerator {hardware.accelerator}, devices {hardware.devices}, strategy {hardware.strategy} do not fit "
            f"this machine: {problem}"
        ) from error
