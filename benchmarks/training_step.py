"""A training step of the default model, with the C allocator as it is and told to keep memory: `python -m
benchmarks.training_step`. Interleaved runs in processes of their own, two minutes; prints medians and their ratio.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

RUNS, WARM_STEPS, STEPS = 3, 10, 40


def measure(keep: bool) -> tuple[float, float]:
    """(milliseconds, page faults) a step of pre-training with the shapes of params.yaml, on random tokens."""
    import numpy as np
    import torch

    from lightning_modules.allocator import keep_memory
    from lightning_modules.batching import make_batch
    from lightning_modules.loss import batch_loss
    from lightning_modules.model_folder import new_model
    from lightning_modules.objectives import SpanCorruption
    from lightning_modules.optim import adamw
    from stages.params import load_params

    if keep:
        keep_memory()
    params = load_params(Path("params.yaml"))
    section, vocab_size = params.pretrain, params.tokenizer.vocab_size
    model = new_model(params.model.config(vocab_size=vocab_size), params.seed)
    optimizer = adamw(model, section.learning_rate, section.weight_decay)
    objective = SpanCorruption(section.corruption_rate, section.mean_span_length, 5, 64, model.config.eos_id)
    rng = np.random.default_rng(params.seed)
    for step in range(WARM_STEPS + STEPS):
        if step == WARM_STEPS:
            began, faults = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        rows = rng.integers(100, vocab_size, (section.batch_size, section.sequence_length))
        loss, tokens = batch_loss(model, make_batch(*objective(rows, rng), model.config), label_smoothing=0.0)
        (loss / tokens).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), section.gradient_clip)
        optimizer.step()
        optimizer.zero_grad()
    seconds = time.perf_counter() - began
    return 1000 * seconds / STEPS, (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults) / STEPS


def main() -> None:
    """Prints the table; with --one, one measurement (what the table's processes run)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", choices=("default", "kept"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(*measure(arguments.one == "kept"))
        return
    results: dict[str, list[tuple[float, float]]] = {"default": [], "kept": []}
    for _ in range(RUNS):
        for name, measured in results.items():
            command = [sys.executable, "-m", "benchmarks.training_step", "--one", name]
            done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
            milliseconds, faults = map(float, done.stdout.split())
            measured.append((milliseconds, faults))
    for name, measured in results.items():
        milliseconds, faults = (statistics.median(column) for column in zip(*measured, strict=True))
        print(f"allocator {name:8} {milliseconds:7.1f} ms a step {faults:9.0f} page faults a step")
    ratios = [a[0] / b[0] for a, b in zip(results["default"], results["kept"], strict=True)]
    print(f"ratio, median of {RUNS} pairs: {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
