"""The Trainer: what `auto` becomes, what it never does, and one line where the machine cannot do what is asked."""

from pathlib import Path

import pytest
import tiny
import torch
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy
from tiny import config, recipe, rows_split

from lightning_modules.datamodule import TextDataModule
from lightning_modules.errors import PipelineError
from lightning_modules.model_folder import new_model
from lightning_modules.module import TransformerModule


def test_auto_on_a_cpu_is_one_process_in_float32() -> None:
    trainer = tiny.trainer(5, 2, 1.0, [])
    assert isinstance(trainer.strategy, SingleDeviceStrategy)
    assert (trainer.world_size, trainer.precision, trainer.max_steps) == (1, "32-true", 5)


@pytest.mark.parametrize("strategy", ["auto", "ddp"])
def test_several_devices_are_ddp(strategy: str) -> None:
    trainer = tiny.trainer(5, 2, 1.0, [], devices=2, strategy=strategy)
    assert isinstance(trainer.strategy, DDPStrategy)
    assert trainer.world_size == 2


def test_threads_are_set_unless_auto() -> None:
    before = torch.get_num_threads()
    try:
        tiny.trainer(5, 2, 1.0, [], threads=2)
        assert torch.get_num_threads() == 2
        tiny.trainer(5, 2, 1.0, [], threads="auto")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_devices_that_the_machine_has_not_are_one_line_that_names_the_keys() -> None:
    with pytest.raises(PipelineError, match="accelerator gpu, devices 99, strategy auto do not fit") as caught:
        tiny.trainer(5, 2, 1.0, [], accelerator="gpu", devices=99)
    assert "\n" not in str(caught.value)


def test_it_counts_steps_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = rows_split(tmp_path / "store")  # an epoch of it is shorter than the training
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    trainer = tiny.trainer(45, 20, 1.0, [])
    trainer.fit(TransformerModule(new_model(config(d_model=16), 0), recipe(steps=45)), TextDataModule(split, split))
    assert trainer.global_step == 45 > split.batches_per_epoch
    assert trainer.current_epoch <= 1
    assert list((tmp_path / "empty").iterdir()) == []
