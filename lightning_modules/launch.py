"""Several processes, one training: started as asked for, from one checkpoint, and none waits for ever for another.

Costs one small reduction when a training starts.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from lightning_modules.errors import PipelineError
from lightning_modules.lightning import SLURMEnvironment, pl

PEER_TIMEOUT = 600  # seconds: more than the first process takes for a checkpoint or a score while the others wait


def require_launched(devices: int, num_nodes: int) -> None:
    """Raises PipelineError where torchrun or SLURM started other processes than `devices` on each of `num_nodes`.

    Lightning would train a model in each, or wait for those that never come.
    """
    if dist.is_torchelastic_launched():
        launcher, started, here = "torchrun", int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
    elif SLURMEnvironment.detect():
        launcher, started = "SLURM", int(os.environ["SLURM_NTASKS"])
        here = started // int(os.environ.get("SLURM_NNODES", num_nodes))
    elif num_nodes == 1 or {"MASTER_ADDR", "NODE_RANK"} <= os.environ.keys():
        return  # Lightning starts the others itself
    else:
        raise PipelineError(
            f"num_nodes is {num_nodes}, but nothing started this process as one of several: use torchrun or srun"
        )
    if (started, here) != (devices * num_nodes, devices):
        raise PipelineError(
            f"{launcher} started {started} processes, {here} of them on this node, but devices × num_nodes is "
            f"{devices} × {num_nodes}"
        )


def bound_waiting(strategy: pl.strategies.Strategy) -> None:
    """Has a process that waits too long for the others fail: a machine that has lost its network says no word.

    PIPELINE_PEER_TIMEOUT in the environment sets other seconds than PEER_TIMEOUT. Raises PipelineError where it cannot.
    """
    told = os.environ.get("PIPELINE_PEER_TIMEOUT", "")
    if told and not (told.isascii() and told.isdigit() and int(told)):
        raise PipelineError(f"PIPELINE_PEER_TIMEOUT is {told!r} in the environment: it takes whole seconds, above 0")
    if isinstance(strategy, pl.strategies.DDPStrategy | pl.strategies.ModelParallelStrategy):
        strategy._timeout = timedelta(seconds=int(told or PEER_TIMEOUT))


@contextmanager
def losing_the_others(told: str) -> Iterator[None]:
    """Where this process learns no more than that another one has ended, that is a PipelineError: `told`."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo/transport/" in str(error):  # closed, or reset, by a peer
            raise PipelineError(told) from error
        raise


def require_same_step(trainer: pl.Trainer) -> None:
    """Raises PipelineError where some processes go on from another step than others. All ranks must call it."""
    if trainer.world_size == 1:
        return
    own = torch.tensor(float(trainer.global_step), device=trainer.strategy.root_device)
    first, last = (int(trainer.strategy.reduce(own.clone(), reduce_op=op)) for op in ("min", "max"))
    if first != last:
        raise PipelineError(
            f"the processes found different checkpoints: this one goes on from step {trainer.global_step}, the first "
            f"from {first}, the last from {last}; .pipeline must lie where all machines see the same files"
        )
