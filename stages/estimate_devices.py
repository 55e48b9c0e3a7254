"""Where to train: this machine, whose peak is measured, and GPUs by their data sheets. Costs a second or two."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

from stages.parallel import cores
from stages.params_schema import Training as Section

THIS = "this"
# The default model on two cores of a Xeon: 0.40 with two threads (25,000 tokens/s of 390 GFLOP/s, 2026-11-23), 0.43
# with one: a step of 14.1 GFLOP in 166 ms, of 195 GFLOP/s, the best of many on a busy machine
# (`OMP_NUM_THREADS=1 python -m benchmarks.training_step --one kept`).
CPU_SHARE = 0.4
# In bf16, by matrix units: 0.14 of 1,260 GFLOP/s there (27,600 tokens/s, 2026-11-30); wider models reach more, a
# decoder of 10 M 0.4 (`python -m benchmarks.peers decoder --bf16`).
CPU_HALF_SHARE = 0.14
# An assumption: models of 175 to 540 billion reached 0.21 to 0.46 (PaLM, arXiv:2204.02311, table 3). Of an H200's data
# sheet a compiled decoder of 124 M reached 0.43 here, an encoder–decoder of 63 M 0.24 (`python -m benchmarks.gpu`).
GPU_SHARE = 0.35
# Seconds a layer and step that the host takes to start a GPU's kernels, however little they do: a step of a decoder of
# width 8 takes one core of the same Xeon 1.0 ms and 0.5 ms a layer.
LAUNCH = 0.5e-3


@dataclass(frozen=True)
class Gpu:
    """A data sheet: dense TFLOP/s of bf16 and of TF32 (what fp32 training uses), 10⁹ bytes of memory. And a price."""

    name: str
    bf16: float
    tf32: float
    memory: float
    price: float | None = None  # US dollars an hour, where a source names one


# NVIDIA's data sheets give twice these numbers where they count sparse matrices. A GPU without bf16 (T4, V100) is not
# what `precision: auto` is for. Prices are no part of data sheets: the middle of what clouds specialised in GPUs asked
# on demand in May 2026 (mercatus-ai.com/blog/cloud-gpu-pricing, first table). Others ask up to twice as much, or less:
# `--price` sets another.
GPUS = {
    "l4": Gpu("NVIDIA L4", 121, 60, 24),  # "L4 Tensor Core GPU" data sheet: 242 and 120 with sparsity
    "a10": Gpu("NVIDIA A10", 125, 62.5, 24),  # "A10 Tensor Core GPU" data sheet
    "rtx4090": Gpu("GeForce RTX 4090", 165.2, 82.6, 24),  # Ada white paper, appendix A: fp32 accumulation
    "l40s": Gpu("NVIDIA L40S", 362, 183, 48),  # "L40S GPU" data sheet: 362 | 733, 183 | 366
    "a100": Gpu("NVIDIA A100 80 GB", 312, 156, 80, 1.3),  # "A100 Tensor Core GPU" data sheet
    "h100": Gpu("NVIDIA H100 SXM", 989, 494, 80, 3.0),  # "H100 Tensor Core GPU" data sheet: 1,979 and 989 with sparsity
    "h200": Gpu("NVIDIA H200 SXM", 989, 494, 141, 4.0),  # "H200 Tensor Core GPU" data sheet: as the H100, more memory
}


@dataclass(frozen=True)
class Device:
    """Where to train: `peak(half, section)` is FLOP/s of one device, `count` what `devices: auto` means."""

    name: str
    gpu: bool
    count: int
    memory: float  # bytes
    share: float | None  # of the peak that training reaches; None: what is known of such devices
    price: float | None  # an hour
    peak: Callable[[bool, Section], float]

    @property
    def launch(self) -> float:
        """Seconds that no layer of a step is shorter than."""
        return LAUNCH if self.gpu else 0.0

    def reached(self, half: bool) -> float:
        """Share of the peak that training reaches."""
        known = GPU_SHARE if self.gpu else CPU_HALF_SHARE if half else CPU_SHARE
        return known if self.share is None else self.share

    def half(self, section: Section, width: int) -> bool:
        """Whether `precision` means bf16 here, for a model of `width`."""
        from lightning_modules.hardware import half_precision

        return half_precision(section.precision, self.gpu, width)[0]

    def processes(self, section: Section) -> int:
        """Devices that share a batch; the processes of one CPU share its cores, so they are one device."""
        own = (self.count if section.devices == "auto" else int(section.devices)) if self.gpu else 1
        return own * section.num_nodes


def devices(accelerator: str, share: float | None, prices: dict[str, float]) -> list[Device]:
    """This machine, then the named GPUs. `prices` of an hour go before the list's, which has none of this machine."""
    import torch

    if torch.cuda.is_available() and accelerator != "cpu":
        memory = torch.cuda.get_device_properties(0).total_memory
        name, gpu, count = f"here: {torch.cuda.get_device_name(0)}", True, torch.cuda.device_count()
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        name, gpu, count = "here: CPU" + (", no GPU" if accelerator == "gpu" else ""), False, 1
    here = Device(
        name,
        gpu,
        count,
        memory,
        share,
        prices.get(THIS),
        lambda half, section: measured_peak(gpu, half, _threads(section)),
    )

    def named(key: str, sheet: Gpu) -> Device:
        price = prices.get(key, sheet.price)
        return Device(sheet.name, True, 1, 1e9 * sheet.memory, share, price, partial(_sheet_peak, sheet))

    return [here, *(named(key, sheet) for key, sheet in GPUS.items())]


def _sheet_peak(sheet: Gpu, half: bool, _: Section) -> float:
    return 1e12 * (sheet.bf16 if half else sheet.tf32)


def _threads(section: Section) -> int:
    """Of all processes on one machine's CPU together."""
    processes = 1 if section.devices == "auto" else int(section.devices)
    return cores() if section.threads == "auto" else min(int(section.threads) * processes, cores())


@cache
def measured_peak(gpu: bool, half: bool, threads: int) -> float:
    """FLOP/s of a product of square matrices, in the precision that trains."""
    import torch

    from lightning_modules.peak import matmul_peak

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("high" if gpu else "highest")  # as the trainer does
    peak = matmul_peak(torch.device("cuda" if gpu else "cpu"), torch.bfloat16 if half else torch.float32)
    torch.set_num_threads(before)
    return peak
