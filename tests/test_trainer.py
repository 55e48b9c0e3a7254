"""The Trainer: what `auto` becomes, what it never does, and one line where the machine cannot do what is asked."""

from pathlib import Path

import pytest
import torch
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy
from tiny import config, hardware, recipe, rows_split

from lightning_modules.datamodule import TextDataModule
from lightning_modules.errors import PipelineError
from lightning_modules.model_folder import new_model
from lightning_modules.module import TransformerModule
from lightning_modules.trainer import build_trainer


def test_auto_on_a_cpu_is_one_process_in_float32() -> None:
    trainer = build_trainer(hardware(), 5, 2, 1.0, [])
    assert isinstance(trainer.strategy, SingleDeviceStrategy)
    assert (trainer.world_size, trainer.precision, trainer.max_steps) == (1, "32-true", 5)


@pytest.mark.parametrize("strategy", ["auto", "ddp"])
def test_several_devices_are_ddp(strategy: str) -> None:
    trainer = build_trainer(hardware(devices=2, strategy=strategy), 5, 2, 1.0, [])
    assert isinstance(trainer.strategy, DDPStrategy)
    assert trainer.world_size == 2


def test_threads_are_set_unless_auto() -> None:
    before = torch.get_num_threads()
    try:
        build_trainer(hardware(threads=2), 5, 2, 1.0, [])
        assert torch.get_num_threads() == 2
        build_trainer(hardware(threads="auto"), 5, 2, 1.0, [])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_devices_that_the_machine_has_not_are_one_line_that_names_the_keys() -> None:
    with pytest.raises(PipelineError, match="accelerator gpu, devices 99, strategy auto do not fit") as caught:
        build_trainer(hardware(accelerator="gpu", devices=99), 5, 2, 1.0, [])
    assert "\n" not in str(caught.value)


def test_it_counts_steps_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = rows_split(tmp_path / "store")  # an epoch of it is shorter than the training
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    trainer = build_trainer(hardware(), 45, 20, 1.0, [])
    trainer.fit(TransformerModule(new_model(config(d_model=16), 0), recipe(steps=45)), TextDataModule(split, split))
    assert trainer.global_step == 45 > split.available // split.rows
    assert trainer.current_epoch <= 1
    assert list((tmp_path / "empty").iterdir()) == []
