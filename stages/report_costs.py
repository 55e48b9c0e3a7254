"""What each training was estimated to take, beside what it took."""

from dataclasses import dataclass, replace
from typing import Any

from stages.estimate import estimate
from stages.estimate_devices import Device
from stages.estimate_trainings import PRETRAIN, trainings
from stages.params import Params


@dataclass(frozen=True)
class Cost:
    """One quantity, as told before and as counted or measured."""

    model: str
    quantity: str
    estimated: float
    taken: float


def costs(params: Params, done: dict[str, dict[str, Any]]) -> list[Cost]:
    """FLOPs, seconds and bytes of memory of each training in `done`: folder of models/ → its training.json.

    The estimate is that of `python -m stages.estimate` for the device that trained, whose peak training.json holds, and
    for as many as there were on all machines, in the precision that they took; each process of a CPU is one, with the
    peak that it found for itself.
    """
    from lightning_modules.flops import parameters

    planned = {one.name: replace(one, runs=1) for one in trainings(params)}
    found = []
    for name, facts in done.items():
        training = planned.get(PRETRAIN if name == "pretrained" else name.removesuffix("-scratch"))
        if training is None or not facts.get("peak_flops"):
            continue
        on_gpu, count, peak = facts["on_gpu"], facts["devices"], facts["peak_flops"]
        device = Device("", on_gpu, 1, 0, None, None, lambda *_, peak=peak: peak)
        took = {"devices": 1, "num_nodes": count, "precision": facts["precision"]}
        section = training.section.model_copy(update=took)
        told = estimate(device, [replace(training, section=section)], parameters(training.config))
        found += [
            Cost(name, "FLOPs of a device", training.steps * training.flops / told.devices, facts["flops"]),
            Cost(name, "seconds", 3600 * told.total, facts["seconds"]),
            Cost(name, "bytes of memory", told.memory_needed, facts["peak_memory"]),
        ]
    return found
