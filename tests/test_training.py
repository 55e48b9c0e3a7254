"""The training stages as real processes: killed, stopped, resumed, run twice, run by two processes, stopped early."""

import json
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from processes import eventually, still_works
from safetensors.torch import load_file
from stage_runs import (
    FINETUNE,
    PRETRAIN,
    SAVE_EVERY,
    SCRATCH,
    STEPS,
    VALIDATE_EVERY,
    assert_same_result,
    await_checkpoint,
    checkpoints,
    curve,
    finish,
    kill,
    running,
    set_params,
    workspace,
)
from tiny import VOCAB_SIZE, config, hardware, read_json

from lightning_modules.datamodule import Batches
from lightning_modules.errors import Interrupted
from lightning_modules.hardware import choose
from lightning_modules.loss import batch_loss
from lightning_modules.model_folder import load_model, new_model
from lightning_modules.objectives import SpanCorruption
from lightning_modules.telling import StepTimes
from lightning_modules.text_pairs import TextPairs
from lightning_modules.text_rows import TextRows
from lightning_modules.token_store import TokenStore
from stages import training
from stages.params import load_params


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which pre-training ran without an interruption."""
    root = workspace(tmp_path_factory.mktemp("training") / "whole")
    (root / "pretrain.txt").write_text(finish(root, PRETRAIN, fresh=True))
    return root


@pytest.fixture(scope="module")
def finetuned(pretrained: Path) -> Path:
    """The same, fine-tuned after it, with its steps' parts timed."""
    set_params(pretrained, finetune={"step_times": True})
    finish(pretrained, FINETUNE, fresh=True)
    return pretrained


def test_a_training_leaves_a_whole_model_folder_and_no_checkpoints(pretrained: Path) -> None:
    folder = pretrained / "models/pretrained"
    names = {"model.safetensors", "config.json", "tokenizer.json", "training.json", "curve.csv"}
    assert {path.name for path in folder.iterdir()} == names
    assert [path.name for path in (pretrained / "models").iterdir() if path.name.startswith(".")] == []
    assert list((pretrained / ".pipeline/checkpoints").iterdir()) == []
    told = read_json(folder / "training.json")
    assert (told["steps"], told["resumed_from"]) == (STEPS, 0)
    assert told["parameters"] == sum(tensor.numel() for tensor in load_file(folder / "model.safetensors").values())
    source_and_target = 32 + 2 + 2 * 2  # 32 tokens, an </s> on both sides, two spans with a sentinel on both
    assert told["tokens"] == STEPS * 16 * source_and_target
    assert (folder / "model.safetensors").stat().st_mode == (folder / "config.json").stat().st_mode


def test_it_says_what_it_runs_on_and_why_and_that_its_text_is_small(pretrained: Path) -> None:
    log, made = (pretrained / "pretrain.txt").read_text(), choose(hardware(), 32, same_shapes=True)
    assert (
        f" parameters on 1 × cpu; {made.precision}: {made.precision_reason}; not compiled: {made.compile_reason}" in log
    )
    assert "pretrain: warning: pretrain.steps 240 goes 16.0 times over the training text (15 batches)" in log


TOLD = {"train_loss", "train_bits_per_byte", "validation_loss", "validation_bits_per_byte", "gradient_norm"}
TOLD |= {"learning_rate", "tokens_per_second", "share_of_peak", "padding_share", "seconds_left"}


@pytest.mark.parametrize(
    ("stage", "more"),
    [("pretrain", set()), ("finetune@translation", {f"{part}_ms" for part in StepTimes.PARTS})],
)
def test_mlflow_is_told_all_there_is_to_know(finetuned: Path, stage: str, more: set[str]) -> None:
    """By the journal, from which it is sent."""
    points = dict[str, list[tuple[int, float]]]()
    for journal in (finetuned / ".pipeline/spool").glob("*/journal.jsonl"):
        operations = [json.loads(line) for line in journal.read_text().splitlines()]
        if any(operation.get("stage") == stage for operation in operations):
            for operation in operations:
                for name, value in operation["values"].items() if operation["op"] == "metrics" else ():
                    points.setdefault(name, []).append((operation["step"], value))
    assert {name for name in points if not name.startswith("system/")} == TOLD | more
    for name in {*TOLD, *more}:
        every = VALIDATE_EVERY if name.startswith("validation") else 2
        assert [step for step, _ in points[name]] == list(range(every, STEPS + 1, every)), name
    left = dict(points["seconds_left"])
    assert left[STEPS] == 0 < left[STEPS - 2]


def test_the_curve_has_every_point_once(pretrained: Path) -> None:
    rows = curve(pretrained / "models/pretrained")
    trained = [int(row["step"]) for row in rows if row["train_loss"]]
    validated = [int(row["step"]) for row in rows if row["validation_loss"]]
    assert trained == list(range(2, STEPS + 1, 2))
    assert validated == list(range(VALIDATE_EVERY, STEPS + 1, VALIDATE_EVERY))
    assert float(rows[0]["train_loss"]) > float(rows[-1]["validation_loss"])


def loss_of(folder: Path, split: Batches) -> float:
    """Nats per target token of a model folder."""
    model, nats, tokens = load_model(folder).eval(), 0.0, 0.0
    with torch.no_grad():
        for batch in split.validation_batches(0, 1):
            loss, count = batch_loss(model, batch, label_smoothing=0.0)
            nats, tokens = nats + loss.item(), tokens + count.item()
    return nats / tokens


def test_the_saved_weights_have_the_validation_loss_that_is_told(pretrained: Path) -> None:
    folder = pretrained / "models/pretrained"
    objective = SpanCorruption(0.15, 3.0, 5, 64, 2)
    store = TokenStore(pretrained / "data/tokens/pretraining/validation")
    split = TextRows(store, config(), objective, 32, 16, 3, 1, "best_fit")
    assert read_json(folder / "training.json")["validation_loss"] == pytest.approx(loss_of(folder, split), rel=1e-5)


def test_killed_with_its_newest_checkpoint_cut_off_it_uses_the_one_before(pretrained: Path, tmp_path: Path) -> None:
    root = workspace(tmp_path / "killed")
    kill(root, PRETRAIN)
    before, newest = checkpoints(root)
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    log = finish(root, PRETRAIN)
    assert f"{newest.relative_to(root)} cannot be read" in log
    assert f"({before.relative_to(root)})" in log
    assert_same_result(root / "models/pretrained", pretrained / "models/pretrained")
    told = read_json(root / "models/pretrained/training.json")
    assert told["resumed_from"] == int(before.stem.removeprefix("step-")) > 0


def test_sigterm_ends_with_143_and_a_checkpoint_and_only_the_same_parameters_go_on(
    pretrained: Path, tmp_path: Path
) -> None:
    root = workspace(tmp_path / "stopped")
    with running(root, PRETRAIN) as process:
        await_checkpoint(process, root, SAVE_EVERY)
        process.terminate()
        assert process.wait(timeout=300) == 143
    log = (root / "log.txt").read_text()
    stopped_at = int(checkpoints(root)[-1].stem.removeprefix("step-"))
    assert f"stopped: checkpoint of step {stopped_at} saved" in log
    assert "Traceback" not in log
    assert not (root / "models").exists()

    other = tmp_path / "other"
    shutil.copytree(root, other)
    set_params(other, pretrain={"learning_rate": 1e-3, "steps": 40})
    assert "going on" not in finish(other, PRETRAIN)
    assert read_json(other / "models/pretrained/training.json")["resumed_from"] == 0
    assert [path.parent.name for path in checkpoints(other)] == [path.parent.name for path in checkpoints(root)]

    assert f"going on from step {stopped_at}" in finish(root, PRETRAIN)
    assert_same_result(root / "models/pretrained", pretrained / "models/pretrained")


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    results = []
    for name in ("one", "same", "other"):
        root = workspace(tmp_path / name)
        set_params(root, seed=2 if name == "other" else 1, task={"steps": 40})
        finish(root, SCRATCH, fresh=name == "same")
        results.append(root / "models/translation-scratch")
    assert_same_result(results[1], results[0])
    assert (results[2] / "model.safetensors").read_bytes() != (results[0] / "model.safetensors").read_bytes()


def test_early_stopping_ends_it_and_keeps_the_best_weights(tmp_path: Path) -> None:
    root = workspace(
        tmp_path / "early",
        finetune={"validate_every": 4, "early_stopping_patience": 2, "dropout": 0.0},
        task={"learning_rate": 3.0},
    )
    finish(root, SCRATCH)
    folder = root / "models/translation-scratch"
    told = read_json(folder / "training.json")
    losses = {int(row["step"]): float(row["validation_loss"]) for row in curve(folder) if row["validation_loss"]}
    assert max(losses) == told["best_step"] + 8 < STEPS
    assert told["validation_loss"] == min(losses.values()) == losses[told["best_step"]]
    split = TextPairs(root / "data/tokens/translation/validation", config(), 600, 60, 20, seed=1)
    assert loss_of(folder, split) == pytest.approx(min(losses.values()), rel=1e-4)
    assert min(losses.values()) < 0.99 * losses[max(losses)]


TWO = {"devices": 2, "strategy": "ddp"}


def test_two_processes_learn_what_one_does_and_the_first_alone_writes(tmp_path: Path) -> None:
    short = {"steps": 13, "warmup_steps": 4, "validate_every": 6, "checkpoint_every": 5, "learning_rate": 1e-3}
    one, two = workspace(tmp_path / "one", pretrain=short), workspace(tmp_path / "two", pretrain=short | TWO)
    finish(one, PRETRAIN)
    log = finish(two, PRETRAIN)
    assert "2/2" in log  # Lightning's "GLOBAL_RANK: 1, MEMBER: 2/2": there were two indeed
    folders = [root / "models/pretrained" for root in (one, two)]
    told = [read_json(folder / "training.json") for folder in folders]
    assert told[1]["validation_loss"] == pytest.approx(told[0]["validation_loss"], rel=1e-4)
    assert told[1]["tokens"] == told[0]["tokens"]
    for rows in zip(*map(curve, folders), strict=True):
        assert rows[0]["step"] == rows[1]["step"]
        for name in ("train_loss", "validation_loss"):
            assert bool(rows[0][name]) == bool(rows[1][name])
            if rows[0][name]:
                assert float(rows[1][name]) == pytest.approx(float(rows[0][name]), rel=1e-3)
    weights = [load_file(folder / "model.safetensors") for folder in folders]
    shape = load_params(one / "params.yaml").model.config(vocab_size=VOCAB_SIZE)
    fresh = new_model(shape, seed=1).state_dict()
    for name, tensor in weights[0].items():
        if "key_value.bias" not in name:  # the keys' half has rounding noise for a gradient
            torch.testing.assert_close(weights[1][name], tensor, atol=2e-4, rtol=1e-2, msg=name)
    assert (weights[0]["embedding.weight_VD"] - fresh["embedding.weight_VD"]).abs().max() > 2e-3
    assert list((two / ".pipeline/checkpoints").iterdir()) == []


def test_two_processes_teach_an_encoder_to_point(tmp_path: Path) -> None:
    """Weights that only guessing tokens needs get no gradient then: nobody may wait for it."""
    task, model = "question_answering", {"preset": "small-encoder", "output_transform": True, "output_bias": True}
    short, told = {"warmup_steps": 4, "validate_every": 6, "checkpoint_every": 5, "dropout": 0.0}, []
    for name, devices in (("one", {}), ("two", TWO)):
        root = workspace(
            tmp_path / name,
            task,
            model=model,
            pretrain={"objective": "masked_lm"},
            finetune=short | devices,
            task={"steps": 13},
        )
        finish(root, ("stages.finetune", task, "--from-scratch"))
        told.append(read_json(root / f"models/{task}-scratch/training.json"))
    assert told[1]["validation_loss"] == pytest.approx(told[0]["validation_loss"], rel=1e-3)


def test_sigterm_to_two_processes_ends_both_with_a_checkpoint_to_go_on_from(tmp_path: Path) -> None:
    """Mostly in a validation, of which there is one a step."""
    steps, every = 30, {"validate_every": 1, "checkpoint_every": 5}
    root = workspace(tmp_path / "two", finetune=TWO | every, task={"steps": steps})
    with running(root, SCRATCH) as process:
        await_checkpoint(process, root, 10)
        processes = [process.pid, *(child.pid for child in psutil.Process(process.pid).children())]
        assert len(processes) >= 2, (root / "log.txt").read_text()
        os.killpg(process.pid, signal.SIGTERM)
        status = process.wait(timeout=300)
        assert status == 143, (root / "log.txt").read_text()
        eventually(lambda: not any(map(still_works, processes)))  # the second process may take a moment longer
    stopped_at = int(checkpoints(root)[-1].stem.removeprefix("step-"))
    assert f"stopped: checkpoint of step {stopped_at} saved" in (root / "log.txt").read_text()
    assert f"going on from step {stopped_at}" in finish(root, SCRATCH)
    rows = curve(root / "models/translation-scratch")
    for name in ("train_loss", "validation_loss"):
        assert [int(row["step"]) for row in rows if row[name]] == list(range(1, steps + 1))


def test_a_stopped_process_that_is_not_the_first_ends_quietly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning would kill the first, which may still be saving, were another's exit status not 0."""

    def stop(*_: Any, **__: Any) -> Any:
        raise Interrupted("stopped")

    monkeypatch.setattr(training, "fit", stop)
    monkeypatch.setenv("LOCAL_RANK", "1")
    job: Any = SimpleNamespace(name="translation")
    nothing: Any = None
    training.run_training(job, nothing, nothing, nothing, nothing)


def test_wrong_inputs_are_one_line_and_status_1(finetuned: Path, tmp_path: Path) -> None:
    root = workspace(tmp_path / "wrong")
    for command, words in (
        (("stages.finetune", "cooking"), "no task 'cooking' in params.yaml"),
        (FINETUNE, "models/pretrained is not a whole model folder"),
    ):
        with running(root, command) as process:
            assert process.wait(timeout=300) == 1
        lines = (root / "log.txt").read_text().splitlines()
        assert [line for line in lines if line.startswith("error:")] == [lines[-1]]
        assert words in lines[-1]
    assert not (root / "models").exists()
