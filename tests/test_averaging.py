"""Averages of weights, against the same written out."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny import model

from lightning_modules.averaging import MovingAverage, mean_of_files


def test_a_moving_average_follows_and_can_take_the_weights_place() -> None:
    made = model()
    average = MovingAverage(made, 0.9)
    expected = {name: parameter.detach().double().clone() for name, parameter in made.named_parameters()}
    for step in range(1, 30):
        with torch.no_grad():
            for name, parameter in made.named_parameters():
                parameter.add_(torch.randn_like(parameter))
                decay = min(0.9, (1 + step) / (10 + step))
                expected[name] = decay * expected[name] + (1 - decay) * parameter
        average.update(step)
    raw = {name: parameter.detach().clone() for name, parameter in made.named_parameters()}
    with average.in_place():
        for name, parameter in made.named_parameters():
            torch.testing.assert_close(parameter.detach(), expected[name].float(), atol=1e-5, rtol=1e-5)
    assert all(torch.equal(parameter, raw[name]) for name, parameter in made.named_parameters())


def test_the_weights_are_put_back_when_something_fails() -> None:
    made = model()
    average = MovingAverage(made, 0.5)
    with torch.no_grad():
        made.embedding.weight_VD.add_(1)
    raw = made.embedding.weight_VD.detach().clone()
    with pytest.raises(ZeroDivisionError), average.in_place():
        raise ZeroDivisionError
    assert torch.equal(made.embedding.weight_VD, raw)


def test_it_goes_on_from_its_state() -> None:
    made = model()
    one, other = MovingAverage(made, 0.9), MovingAverage(made, 0.9)
    with torch.no_grad():
        made.embedding.weight_VD.add_(1)
    one.update(5)
    other.load_state_dict({name: tensor.clone() for name, tensor in one.state_dict().items()})
    for average in (one, other):
        average.update(6)
    assert all(torch.equal(one.state_dict()[name], tensor) for name, tensor in other.state_dict().items())


def test_the_mean_of_files_is_the_mean_and_keeps_their_kinds(tmp_path: Path) -> None:
    torch.manual_seed(0)
    saved = [
        {"weight": torch.randn(5, 3), "half": torch.randn(4).bfloat16(), "bytes": torch.tensor([7])} for _ in range(3)
    ]
    for number, tensors in enumerate(saved):
        save_file(tensors, tmp_path / f"{number}.safetensors")
    mean = mean_of_files(sorted(tmp_path.iterdir()))
    torch.testing.assert_close(mean["weight"], torch.stack([tensors["weight"] for tensors in saved]).mean(0))
    assert mean["half"].dtype == torch.bfloat16
    assert torch.equal(mean["bytes"], saved[0]["bytes"])
