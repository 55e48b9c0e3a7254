"""What an optimiser's step costs for the model of params.yaml: `python -m benchmarks.optimizers`. One process, under a
minute. Optimisers take turns, so that a busy moment of the machine meets all of them; prints medians.

Gradients are random and the clipping, which costs the same for all, is left out.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from lightning_modules.allocator import keep_memory
from lightning_modules.model_folder import new_model
from lightning_modules.optim import OPTIMIZERS
from lightning_modules.transformer.model import count_parameters
from stages.params import load_params

ROUNDS, STEPS = 9, 3  # of measuring one optimiser in one round


def milliseconds(step: Callable[[], object], device: torch.device) -> float:
    """A step's, the mean of STEPS."""
    began = time.perf_counter()
    for _ in range(STEPS):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - began) / STEPS


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """What it remembers between steps."""
    values = (value for state in optimizer.state.values() for value in state.values())
    return sum(value.nbytes for value in values if isinstance(value, torch.Tensor))


def main() -> None:
    """Prints the table."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    keep_memory()
    params = load_params(Path("params.yaml"))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = new_model(params.model.config(vocab_size=params.tokenizer.vocab_size), params.seed).to(device)
    for parameter in model.parameters():
        parameter.grad = 1e-3 * torch.randn_like(parameter)
    optimizers = {name: make(model, 1e-4, 0.01) for name, make in OPTIMIZERS.items()}
    for optimizer in optimizers.values():
        optimizer.step()  # the first makes the state
    measured: dict[str, list[float]] = {name: [] for name in optimizers}
    for _ in range(ROUNDS):
        for name, optimizer in optimizers.items():
            measured[name].append(milliseconds(optimizer.step, device))
    print(f"{count_parameters(model):,} parameters on {device.type}, {torch.get_num_threads()} threads")
    for name, optimizer in optimizers.items():
        print(f"{name:10} {statistics.median(measured[name]):7.1f} ms a step {state_bytes(optimizer) / 2**20:7.1f} MiB")


if __name__ == "__main__":
    main()
