"""What the current params.yaml will take, told before it runs: parameters, FLOPs, memory, tokens, hours, cost, and
whether the text suffices for the model.

For this machine, whose peak is measured, and for named GPUs by their data sheets. An estimate of training alone:
preparing, validating and scoring are left out. Writes nothing, gives no model memory; takes some seconds.
"""

import argparse
import json
import math
import sys
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.console import Console
from rich.table import Table

from lightning_modules.errors import PipelineError
from lightning_modules.flops import batch_bytes, optimizer_flops, parameters, state_bytes
from lightning_modules.token_store import TokenStore
from stages.console import run_stage, stage_parser
from stages.estimate_devices import GPUS, THIS, Device, devices
from stages.estimate_trainings import PRETRAIN, TOKENS, Training, trainings
from stages.params import load_params
from stages.tasks import PRETRAINING

TOKENS_OF_PARAMETER = 20  # Hoffmann et al. 2022, arXiv:2203.15556, table 3; their parameters include embeddings
PASSES = 4  # over a text that are worth nearly as much as new text: Muennighoff et al. 2023, arXiv:2305.16264
NOTES = (
    "FLOPs: products of matrices, forward and backward. Times: trainings one after another; preparing, validating and",
    "scoring are left out. A task has a fine-tuning and a control from scratch. Share of the peak: measured with the",
    "default model for CPUs, assumed for GPUs, where a small model's steps take as long as starting their kernels.",
    "Prices of an hour: US dollars, of clouds specialised in GPUs, May 2026 (mercatus-ai.com/blog/cloud-gpu-pricing).",
    "Others ask up to twice as much, or less: --price NAME=PRICE sets yours.",
)


@dataclass(frozen=True)
class Estimate:
    """What all trainings take on one kind of device. Hours of trainings one after another."""

    device: str
    devices: int  # in pre-training, or where nothing is pre-trained in fine-tuning
    peak_flops: float  # a second and device
    share: float
    memory_needed: int  # bytes, the most that a training needs on a device
    memory: float
    hours: dict[str, float]
    price: float | None  # of an hour of a device
    cost: float | None  # in the currency of the price

    @property
    def total(self) -> float:
        """Hours of all trainings."""
        return sum(self.hours.values())


def estimate(device: Device, planned: list[Training], parts: dict[str, int]) -> Estimate:
    """What the trainings of a model with these parameters take on `device`."""
    hours, needed, device_hours = {}, 0, 0.0
    for training in planned:
        section, half = training.section, device.half(training.section, training.config.d_model)
        processes = device.processes(section)
        speed = device.peak(half, section) * device.reached(half)
        flops = training.flops / processes + optimizer_flops(training.config, section.optimizer)
        seconds = max(flops / speed, device.launch * training.layers)
        hours[training.name] = training.runs * training.steps * seconds / 3600
        device_hours += hours[training.name] * processes
        whole, pieces = training.largest, processes * section.accumulate
        part = replace(whole, rows=math.ceil(whole.rows / pieces), predicted=math.ceil(whole.predicted / pieces))
        if section.strategy in ("auto", "ddp"):
            held = state_bytes(parts, section.optimizer, half, processes)
        else:
            held = state_bytes(parts, section.optimizer, half, 1) // processes
        batch = batch_bytes(training.config, part, half, device.gpu, section.recompute_activations)
        needed = max(needed, held + batch)
    first = planned[0].section
    half = device.half(first, planned[0].config.d_model)
    return Estimate(
        device=device.name,
        devices=device.processes(first),
        peak_flops=device.peak(half, first),
        share=device.reached(half),
        memory_needed=needed,
        memory=device.memory,
        hours=hours,
        price=device.price,
        cost=None if device.price is None else device.price * device_hours,
    )


@dataclass(frozen=True)
class Data:
    """Text to pre-train on. `available` is None until the tokenize stage has run."""

    parameters: int
    available: int | None
    read: int  # tokens in all steps
    step: int  # tokens in one

    @property
    def wanted(self) -> int:
        """Tokens that the model wants, by Chinchilla."""
        return TOKENS_OF_PARAMETER * self.parameters

    def text_verdict(self) -> str:
        """Whether the text suffices for the model, in one sentence."""
        asked = f"Chinchilla asks for {TOKENS_OF_PARAMETER} a parameter, embeddings included: {short(self.wanted)}"
        if self.available is None:
            return f"Text: how many tokens there are is known once tokenize has run; {asked}."
        has = f"{short(self.available)} tokens are {self.available / self.parameters:.2g} a parameter"
        if self.available >= self.wanted:
            return f"Text: enough. {has}; {asked}."
        lack = (
            f"Text: too little. {has}; {asked}. The model is {self.wanted / self.available:.2g} times too large for it"
        )
        return f"{lack}, unless it is read {PASSES} times." if PASSES * self.available >= self.wanted else f"{lack}."

    def steps_verdict(self) -> str:
        """Whether the steps read enough of it, in one sentence."""
        passes = self.read / self.available if self.available else 0.0
        reads = f"{short(self.read)} tokens, {self.read / self.parameters:.2g} a parameter"
        reads += f", {passes:.2g} passes over the text" if passes else ""
        if passes > PASSES:
            return f"Steps: they read {reads}; beyond {PASSES} passes repeated text is worth ever less."
        if self.read >= self.wanted:
            return f"Steps: enough. They read {reads}."
        return f"Steps: too few for this model. They read {reads}; {math.ceil(self.wanted / self.step):,} would do."


def pretraining_data(planned: list[Training], count: int) -> Data | None:
    """What is known of the text; None where nothing is pre-trained."""
    pretraining = next((training for training in planned if training.name == PRETRAIN), None)
    if pretraining is None:
        return None
    store = TOKENS / PRETRAINING / "train"
    available = None
    if (store / "meta.json").exists():
        meta = TokenStore(store).meta
        available = meta.tokens + meta.documents  # each document ends in </s>
    return Data(count, available, pretraining.steps * pretraining.tokens, pretraining.tokens)


def short(number: float) -> str:
    """Three digits and a prefix of the SI: 1.98 M."""
    for exponent, prefix in ((18, " E"), (15, " P"), (12, " T"), (9, " G"), (6, " M"), (3, " k")):
        if abs(number) >= 0.9995 * 10**exponent:
            return f"{number / 10**exponent:.3g}{prefix}"
    return f"{number:.3g}"


def show(
    console: Console, parts: dict[str, int], planned: list[Training], found: list[Estimate], data: Data | None
) -> None:
    """The tables and the verdict."""
    console.print(f"{planned[0].config.architecture}, {sum(parts.values()):,} parameters", highlight=False)
    console.print("  " + ", ".join(f"{part} {short(count)}" for part, count in parts.items()), highlight=False)
    console.print()
    table = _table("training", "runs", "steps", "tokens", "FLOPs a token", "FLOPs")
    for one in planned:
        numbers = one.steps * one.tokens, one.flops / one.tokens, one.runs * one.steps * one.flops
        table.add_row(one.name, f"{one.runs}", f"{one.steps:,}", *map(short, numbers))
    console.print(table)
    console.print()
    table = _table("device", "FLOP/s", "share", "needs", "memory", "pre-training", "all trainings", "an hour", "cost")
    for row in found:
        table.add_row(
            f"{row.devices} × {row.device}" if row.devices > 1 else row.device,
            short(row.peak_flops),
            f"{row.share:.0%}",
            f"{short(row.memory_needed)}B",
            f"{short(row.memory)}B" + (" too small" if row.memory_needed > row.memory else ""),
            clock(row.hours[PRETRAIN]) if PRETRAIN in row.hours else "–",
            clock(row.total),
            *("–" if number is None else f"{number:.2f}" for number in (row.price, row.cost)),
        )
    console.print(table)
    console.print()
    for line in NOTES if data is None else (data.text_verdict(), data.steps_verdict(), *NOTES):
        console.print(line, highlight=False, soft_wrap=True)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left", no_wrap=True, header_style="bold")
    return table


def clock(hours: float) -> str:
    """Hours, in a smaller unit where there is not one."""
    if hours >= 1:
        return f"{hours:,.1f} h" if hours < 100 else f"{hours:,.0f} h"
    return f"{60 * hours:.1f} min" if hours >= 1 / 60 else f"{3600 * hours:.2g} s"


def asked_prices(texts: list[str]) -> dict[str, float]:
    """`NAME=PRICE` of an hour of a device → prices by name. Raises PipelineError for a name that is not known."""
    prices = {}
    for text in texts:
        name, _, number = text.partition("=")
        if name not in (THIS, *GPUS):
            raise PipelineError(f"--price {text}: no device {name!r}; known are {THIS}, {', '.join(GPUS)}")
        try:
            prices[name] = float(number)
        except ValueError:
            prices[name] = -1.0
        if not 0 <= prices[name] < math.inf:
            raise PipelineError(f"--price {text}: give the price of an hour as a number, as in {name}=2.5")
    return prices


def main(arguments: argparse.Namespace) -> None:
    """Prints the estimate."""
    prices = asked_prices(arguments.price)
    if arguments.share is not None and not 0 < arguments.share <= 1:
        raise PipelineError(f"--share {arguments.share}: must be above 0 and at most 1")
    params = load_params()
    planned = trainings(params)
    if not planned:
        raise PipelineError("params.yaml trains nothing: pretrain.steps is 0 and tasks is empty")
    parts = parameters(planned[0].config)
    found = [estimate(one, planned, parts) for one in devices(params.pretrain.accelerator, arguments.share, prices)]
    data = pretraining_data(planned, sum(parts.values()))
    if arguments.json:
        print(json.dumps(as_json(parts, planned, found, data), indent=2))
        return
    show(Console(width=None if sys.stdout.isatty() else 140), parts, planned, found, data)


def as_json(parts: dict[str, int], planned: list[Training], found: list[Estimate], data: Data | None) -> dict[str, Any]:
    """The same for programs: FLOPs, FLOPs a second, bytes, hours."""
    return {
        "parameters": {**parts, "all": sum(parts.values())},
        "trainings": {
            one.name: {
                "runs": one.runs,
                "steps": one.steps,
                "tokens": one.steps * one.tokens,
                "flops_a_token": one.flops / one.tokens,
                "flops": one.runs * one.steps * one.flops,
            }
            for one in planned
        },
        "devices": [{**asdict(row), "all_hours": row.total} for row in found],
        "data": data and {**asdict(data), "wanted": data.wanted},
    }


if __name__ == "__main__":
    parser = stage_parser(__doc__)
    parser.add_argument("--share", type=float, help="share of the peak that training reaches, on every device")
    parser.add_argument(
        "--price",
        action="append",
        default=[],
        metavar="NAME=PRICE",
        help=f"of an hour of a device, in place of a known one; names: {THIS} (this machine), {', '.join(GPUS)}",
    )
    parser.add_argument("--json", action="store_true", help="print for programs")
    run_stage(main, parser)
