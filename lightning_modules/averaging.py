"""Averages of the weights along the way, often better than the last ones: exponential, and of the last checkpoints.

The exponential one costs a pass over the weights a step and a copy of them in memory and in checkpoints; the other a
file of weights a checkpoint.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lightning_modules.parallel import local_part


class MovingAverage:
    """average ← decay·average + (1 - decay)·weights after each step (Polyak and Juditsky 1992, in exponential form).

    At step t the decay is at most (1 + t)/(10 + t), so that the first weights are soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._names = [name for name, _ in model.named_parameters()]
        self._weights = [local_part(parameter) for parameter in model.parameters()]
        self._average = [weight.clone() for weight in self._weights]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights after `step`."""
        torch._foreach_lerp_(self._average, self._weights, 1 - min(self.decay, (1 + step) / (10 + step)))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the averaged weights for as long as the block lasts."""
        raw = [weight.clone() for weight in self._weights]
        torch._foreach_copy_(self._weights, self._average)
        try:
            yield
        finally:
            torch._foreach_copy_(self._weights, raw)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by the parameters' names."""
        return dict(zip(self._names, self._average, strict=True))

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes them up again."""
        torch._foreach_copy_(self._average, [local_part(state[name]) for name in self._names])


def mean_of_files(paths: list[Path]) -> dict[str, Tensor]:
    """The mean of several files of weights (the 2017 paper, section 6.1: of the last five checkpoints)."""
    first = load_file(paths[0])
    mean = {name: tensor.double() for name, tensor in first.items()}
    for path in paths[1:]:
        for name, tensor in load_file(path).items():
            mean[name] += tensor
    return {name: (tensor / len(paths)).to(first[name].dtype) for name, tensor in mean.items()}
