"""Where and how to train, and what `auto` becomes on this machine, with the reason."""

from dataclasses import dataclass

import torch

# Width of a model: bf16 on a CPU's matrix units takes 0.7 to 0.9 of fp32's time there, 0.8 to 1.0 at 64
# (`python -m benchmarks.precision`).
HALF_PAYS_FROM = 128


@dataclass(frozen=True)
class Hardware:
    """Where and how to train; each may be `auto`, but the number of machines."""

    accelerator: str
    devices: int | str
    num_nodes: int
    strategy: str
    precision: str
    compile: bool | str
    threads: int | str


@dataclass(frozen=True)
class Choice:
    """What `auto` became, and why."""

    on_gpu: bool
    precision: str
    precision_reason: str
    compiled: bool
    compile_reason: str


def half_precision(precision: str, on_gpu: bool, width: int) -> tuple[bool, str]:
    """Whether `precision` means bf16 for a model of `width`, and why."""
    if precision != "auto":
        return precision == "bf16-mixed", "as set"
    if on_gpu:
        return True, "GPUs multiply bf16 several times faster than fp32"
    if not torch.cpu._is_amx_tile_supported():
        return False, "this CPU has no matrix units (AMX), without which bf16 is slower"
    if width < HALF_PAYS_FROM:
        return False, f"bf16 on this CPU's matrix units (AMX) pays from width {HALF_PAYS_FROM}"
    return True, "this CPU has matrix units (AMX)"


def choose(hardware: Hardware, width: int, same_shapes: bool) -> Choice:
    """Settles precision and compilation for this machine, a model of `width`, and batches that look alike or do not."""
    on_gpu = hardware.accelerator == "gpu" or (hardware.accelerator == "auto" and torch.cuda.is_available())
    half, reason = half_precision(hardware.precision, on_gpu, width)
    precision = "bf16-mixed" if half else "32-true"
    if hardware.compile != "auto":
        return Choice(on_gpu, precision, reason, bool(hardware.compile), "as set")
    if hardware.strategy in ("fsdp", "tensor_parallel"):
        return Choice(on_gpu, precision, reason, False, "nobody has tried it with shares of a model")
    if not on_gpu:
        return Choice(on_gpu, precision, reason, False, "on CPUs it takes a minute and gains nothing")
    if not same_shapes:
        return Choice(on_gpu, precision, reason, False, "batches differ in shape, each shape would be compiled anew")
    return Choice(on_gpu, precision, reason, True, "a GPU, and all batches have one shape")
