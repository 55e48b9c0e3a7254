"""Which of several processes of one training this is, from what launchers leave in the environment. Costs nothing."""

import os

_RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")  # torchrun's, Lightning's, SLURM's


def is_main_process() -> bool:
    """False in the processes that Lightning, torchrun or SLURM started for the other ranks."""
    # torchrun numbers the nodes itself, in another order than SLURM or Kubernetes, where one of them started it.
    names = ("RANK",) if started_by_torchrun() else _RANKS
    return not any(int(os.environ.get(name, "0")) for name in names)


def started_by_torchrun() -> bool:
    """Whether an agent of torchrun watches over this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ
