"""What `auto` becomes, on machines that this one is told to be."""

import pytest
import torch
from tiny import hardware

from lightning_modules.hardware import HALF_PAYS_FROM, choose

FP32, BF16 = "32-true", "bf16-mixed"


@pytest.fixture(autouse=True)
def _a_plain_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch)


def has(monkeypatch: pytest.MonkeyPatch, gpu: bool = False, amx: bool = False) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)


@pytest.mark.parametrize(
    ("gpu", "amx", "width", "precision", "words"),
    [
        (False, False, 1024, FP32, "no matrix units"),
        (False, True, 127, FP32, "pays from width 128"),
        (False, True, 128, BF16, "this CPU has matrix units"),
        (True, False, 32, BF16, "GPUs multiply bf16"),
    ],
)
def test_precision_follows_device_and_width(
    monkeypatch: pytest.MonkeyPatch, gpu: bool, amx: bool, width: int, precision: str, words: str
) -> None:
    assert HALF_PAYS_FROM == 128
    has(monkeypatch, gpu, amx)
    made = choose(hardware(accelerator="auto"), width, same_shapes=True)
    assert (made.on_gpu, made.precision) == (gpu, precision)
    assert words in made.precision_reason


@pytest.mark.parametrize(
    ("gpu", "strategy", "same_shapes", "compiled", "words"),
    [
        (True, "auto", True, True, "all batches have one shape"),
        (True, "ddp", True, True, "all batches have one shape"),
        (True, "auto", False, False, "each shape would be compiled anew"),
        (True, "fsdp", True, False, "nobody has tried it with shares of a model"),
        (True, "tensor_parallel", True, False, "nobody has tried it with shares of a model"),
        (False, "auto", True, False, "takes a minute and gains nothing"),
    ],
)
def test_it_compiles_on_gpus_where_all_batches_have_one_shape(
    monkeypatch: pytest.MonkeyPatch, gpu: bool, strategy: str, same_shapes: bool, compiled: bool, words: str
) -> None:
    has(monkeypatch, gpu)
    made = choose(hardware(accelerator="auto", strategy=strategy), 512, same_shapes)
    assert made.compiled == compiled
    assert words in made.compile_reason


@pytest.mark.parametrize("told", [True, False])
def test_what_is_set_is_done_anywhere(monkeypatch: pytest.MonkeyPatch, told: bool) -> None:
    precision = BF16 if told else FP32
    for gpu in (True, False):
        has(monkeypatch, gpu, amx=gpu)
        made = choose(hardware(accelerator="auto", precision=precision, compile=told), 512, same_shapes=not told)
        assert (made.precision, made.precision_reason) == (precision, "as set")
        assert (made.compiled, made.compile_reason) == (told, "as set")


def test_the_device_that_is_set_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, gpu=True)
    assert not choose(hardware(accelerator="cpu"), 512, True).on_gpu
    assert choose(hardware(accelerator="gpu"), 512, True).on_gpu
