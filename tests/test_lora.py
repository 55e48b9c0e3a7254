"""Learning with few weights: what is frozen stays, updates are what they should be, a folder holds none of them."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from tiny import batch_for, config, model, pairs_split, recipe

from lightning_modules.callbacks import Checkpoints
from lightning_modules.datamodule import TextDataModule
from lightning_modules.loss import batch_loss
from lightning_modules.model_folder import load_model, new_model, save_model
from lightning_modules.module import TransformerModule
from lightning_modules.optim import OPTIMIZERS
from lightning_modules.transformer.heads import Classifier, SpanReader
from lightning_modules.transformer.lora import add_lora, freeze_lowest, merged_state

SHAPES: dict[str, dict[str, Any]] = {
    "encoder": {"architecture": "encoder", "positions": "learned"},
    "decoder": {"architecture": "decoder", "positions": "rotary", "key_value_heads": 2, "bias": False, "qk_norm": True},
    "encoder_decoder": {"norm": "post", "positions": "relative"},
}


def updated(made: Any, scale: float = 0.1) -> Any:
    """With updates that are not nothing."""
    for name, weight in made.named_parameters():
        if "lora_b" in name:
            torch.nn.init.normal_(weight, std=scale)
    return made


def loss_of(made: Any) -> torch.Tensor:
    batch = batch_for(made, 1, [9, 4, 1], [9, 4, 1] if made.config.architecture == "encoder" else [3, 7, 1])
    loss, _ = batch_loss(made, batch, 0.0)
    return loss


@pytest.mark.parametrize("shape", SHAPES)
def test_updates_change_nothing_at_first_and_merged_compute_the_same(shape: str) -> None:
    plain, ours = model(**SHAPES[shape]), model(**SHAPES[shape])
    before = {name: weight.clone() for name, weight in plain.state_dict().items()}
    add_lora(ours, 3)
    torch.testing.assert_close(loss_of(ours), loss_of(plain))
    updated(ours)
    expected = loss_of(ours)
    assert not torch.isclose(expected, loss_of(plain), rtol=1e-3)
    plain.load_state_dict(merged_state(ours))  # the names of a model without updates
    torch.testing.assert_close(loss_of(plain), expected, rtol=1e-5, atol=1e-4)
    changed = {name for name, weight in plain.state_dict().items() if not torch.equal(weight, before[name])}
    projections = ("query.weight", "key_value.weight", "output.weight")
    assert changed == {name for name in before if "attention" in name and name.endswith(projections)}
    for name in changed:
        assert torch.linalg.matrix_rank(plain.state_dict()[name] - before[name], rtol=1e-3) == 3
        pair = [ours.get_parameter(name.replace("weight", f"lora_{which}")) for which in ("b_OR", "a_RI")]
        torch.testing.assert_close(plain.state_dict()[name], before[name] + pair[0] @ pair[1])


@pytest.mark.parametrize("shape", SHAPES)
def test_updates_alone_learn(shape: str) -> None:
    ours = model(**SHAPES[shape])
    add_lora(ours, 3)
    learning = {name for name, weight in ours.named_parameters() if weight.requires_grad}
    assert {name.rpartition(".")[2] for name in learning} == {"lora_a_RI", "lora_b_OR"}
    with pytest.raises(ValueError, match="a rank of 32 is not below"):
        add_lora(ours, 32)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layers", [1, 2])
def test_the_lowest_layers_and_the_embeddings_are_frozen(shape: str, layers: int) -> None:
    ours = model(**SHAPES[shape], encoder_layers=2, decoder_layers=3)
    freeze_lowest(ours, layers)
    before = {name: weight.clone() for name, weight in ours.named_parameters()}
    optimizer = OPTIMIZERS["adamw"](ours, 1e-2, 0.1)
    loss_of(ours).backward()
    optimizer.step()
    still = {name for name, weight in ours.named_parameters() if torch.equal(weight, before[name])}
    lowest = [f"{stack}.blocks.{n}." for stack in ("encoder", "decoder") for n in range(layers)]
    frozen = {n for n in before if n.startswith(("embedding", "encoder.positions", "encoder.embedding_norm", *lowest))}
    untouched = {name for name in before if "key_value.bias" in name or ".head." in name}  # of no use to the loss
    assert frozen <= still <= frozen | untouched
    with pytest.raises(ValueError, match=r"4 layers cannot be frozen in a stack of [23]"):
        freeze_lowest(ours, 4)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimisers_take_what_is_frozen_and_keep_nothing_of_it(name: str) -> None:
    ours = model()
    add_lora(ours, 2)
    freeze_lowest(ours, 1)
    before = {n: weight.clone() for n, weight in ours.named_parameters()}
    optimizer = OPTIMIZERS[name](ours, 1e-2, 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(ours).backward()
        optimizer.step()
    learning = {n for n, weight in ours.named_parameters() if weight.requires_grad}
    decaying = {id(weight) for group in optimizer.param_groups if group["weight_decay"] for weight in group["params"]}
    assert {id(ours.get_parameter(n)) for n in learning} <= decaying
    assert len(optimizer.state) == len(learning)
    assert {n for n, weight in ours.named_parameters() if not torch.equal(weight, before[n])} == learning


@pytest.mark.parametrize("changes", [{"ema_decay": 0.5}, {"optimizer": "muon"}], ids=["averaged", "muon"])
def test_a_training_resumed_ends_as_if_never_stopped(tmp_path: Path, changes: dict[str, Any]) -> None:
    split = pairs_split(tmp_path / "pairs", architecture="encoder")

    def trained(folder: str, start: Path | None) -> dict[str, torch.Tensor]:
        made = new_model(config(architecture="encoder", dropout=0.1), seed=0)
        torch.manual_seed(1 if start is None else 2)  # what is drawn anew comes from the checkpoint
        add_lora(made, 2)
        freeze_lowest(made, 1)
        learner = SpanReader(made)  # type: ignore[arg-type]
        module = TransformerModule(learner, recipe(steps=8, **changes))
        trainer = tiny.trainer(8, 4, 0.5, [Checkpoints(tmp_path / folder, 3, 2, 0, 0)])
        trainer.fit(module, TextDataModule(split, split), ckpt_path=start, weights_only=True)
        return merged_state(learner)

    expected = trained("whole", None)
    got = trained("resumed", tmp_path / "whole/step-000000003.ckpt")
    assert list(got) == list(expected)
    assert all(torch.equal(got[name], expected[name]) for name in got)
    first = SpanReader(new_model(config(architecture="encoder"), seed=0)).state_dict()  # type: ignore[arg-type]
    moved = {name for name in got if not torch.equal(got[name], first[name])}
    assert moved == {name for name in first if "blocks.1.attention." in name and name.endswith("weight")} | {
        "ends.weight",
        "ends.bias",
    }


@pytest.mark.parametrize("head", ["none", "span", "class"])
def test_a_folder_holds_the_merged_model(tmp_path: Path, head: str) -> None:
    ours = model(architecture="encoder")
    add_lora(ours, 2)
    updated(ours)
    made = {"none": lambda: ours, "span": lambda: SpanReader(ours), "class": lambda: Classifier(ours, "ab")}[head]()
    (tmp_path / "model").mkdir()
    save_model(tmp_path / "model", made, tiny.write_tokenizer(tmp_path / "tokenizer"), {})
    loaded = load_model(tmp_path / "model").eval()
    assert type(loaded) is type(made)
    assert "lora" not in " ".join(loaded.state_dict())
    source_BS, _ = tiny.batch(0, [7, 7], [1, 1])
    torch.testing.assert_close(loaded(source_BS), made(source_BS), atol=1e-5, rtol=1e-4)
