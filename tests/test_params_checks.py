"""What cannot work together in params.yaml is refused when it is read, and by the same decision as the stage's own."""

from pathlib import Path
from typing import Any

import pytest
import tiny
from corruptions import corruption
from ruamel.yaml import YAML
from test_parallel_training import hardware
from test_params import TEXT, error_of, line_of

from flows.overrides import overridden
from lightning_modules.errors import PipelineError
from lightning_modules.hardware import choose
from lightning_modules.model_folder import new_model
from lightning_modules.parallel import require_possible
from lightning_modules.trainer import build_trainer
from lightning_modules.transformer.lora import add_lora, freeze_lowest
from stages.params import Params, load_params
from stages.params_checks import WRITTEN

ROOT = Path(__file__).parents[1]
NO_TASKS = {"tasks": {}, "data": {"pretraining": [{"source": "botocore", "reader": "botocore_documents"}]}}


def loaded(folder: Path, changes: dict[str, Any]) -> Params:
    (folder / "params.yaml").write_text(overridden(TEXT, changes))
    return load_params(folder / "params.yaml")


def refused(folder: Path, changes: dict[str, Any]) -> bool:
    try:
        loaded(folder, changes)
    except PipelineError:
        return True
    return False


@pytest.mark.parametrize(
    ("changes", "at", "says"),
    [
        (
            {"finetune.freeze_layers": 99},
            "  freeze_layers",
            "finetune.freeze_layers: 99 exceeds the layers of a stack, 3",
        ),
        ({"finetune.lora_rank": 1000}, "  lora_rank", "finetune.lora_rank: 1000 is not below the model's width, 192"),
        (
            {"finetune.lora_rank": 4, "finetune.strategy": "tensor_parallel"},
            "  lora_rank",
            "finetune.lora_rank: strategy tensor_parallel cannot split its updates",
        ),
        (
            {"finetune.optimizer": "muon", "finetune.strategy": "fsdp"},
            "  optimizer: muon",
            "finetune.optimizer: muon needs whole matrices, of which strategy fsdp keeps a share on each device: use ",
        ),
        (
            {"finetune.optimizer": "muon", "finetune.strategy": "fsdp", "finetune.choose_by": "score"},
            "  optimizer: muon",
            "finetune.optimizer: muon needs whole matrices",
        ),
        (
            {"pretrain.optimizer": "adafactor", "pretrain.strategy": "tensor_parallel"},
            "  optimizer: adafactor",
            "pretrain.optimizer: adafactor needs whole matrices, of which strategy tensor_parallel keeps a share",
        ),
        (
            {"finetune.choose_by": "score", "finetune.strategy": "fsdp"},
            "  choose_by",
            "finetune.choose_by: score needs a whole model on each device, not strategy fsdp",
        ),
        (
            {"pretrain.mean_span_length": 1.0, "pretrain.corruption_rate": 0.5},
            "  sequence_length",
            "pretrain.sequence_length: 256 at corruption_rate 0.5 and mean_span_length 1.0 needs 128 sentinels, the "
            "tokenizer has 64: ",
        ),
        (
            {"sources.local": {"mine": {"path": "data"}}},
            "    mine:",
            "sources.local.mine.path: data holds data/raw, which the pipeline writes: name a file or folder elsewhere",
        ),
        ({"sources.local": {"mine": {"path": "."}}}, "    mine:", 'sources.local.mine.path: "" or . holds data/raw'),
        ({"sources.local": {"mine": {"path": ""}}}, "    mine:", 'sources.local.mine.path: "" or . holds data/raw'),
        ({"sources.local": {"mine": {"path": "a/../data/raw/x.txt"}}}, "    mine:", "x.txt lies in data/raw, which"),
        ({"sources.local": {"mine": {"path": "reports"}}}, "    mine:", "reports lies in reports, which the pipeline"),
    ],
)
def test_what_cannot_work_is_one_line_with_its_place(
    tmp_path: Path, changes: dict[str, Any], at: str, says: str
) -> None:
    text = overridden(TEXT, changes)
    message = error_of(tmp_path, text)
    line = int(message.split(":")[1])
    assert line == line_of(text, at) + ("mine" in at)  # a source's path stands below its name
    assert says in message


def test_a_path_from_the_root_of_the_disk_may_lie_in_outputs_too(tmp_path: Path) -> None:
    assert refused(tmp_path, {"sources.local": {"mine": {"path": str(tmp_path / "models/translation")}}})
    for path in (str(tmp_path / "texts"), "data/mine.txt", "../texts", "rawdata", str(tmp_path.parent / "raw")):
        assert loaded(tmp_path, {"sources.local": {"mine": {"path": path}}}).sources.local["mine"].path == Path(path)


def test_all_outputs_of_the_stages_are_where_no_source_may_be() -> None:
    stages = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"].values()
    made = [stage.get("do", stage) for stage in stages]
    outs = [out for stage in made for kind in ("outs", "plots", "metrics") for out in stage.get(kind, [])]
    assert len(outs) > 10
    assert all(any(Path(out).is_relative_to(folder) for folder in WRITTEN) for out in outs)


def test_what_no_stage_will_do_is_not_checked(tmp_path: Path) -> None:
    changes = {"finetune.freeze_layers": 9, "finetune.optimizer": "muon", "finetune.strategy": "fsdp"}
    assert not loaded(tmp_path, {**changes, **NO_TASKS}).tasks


@pytest.mark.parametrize("architecture", ["encoder", "decoder", "encoder_decoder"])
def test_a_model_can_be_restrained_where_the_stage_can_do_it(tmp_path: Path, architecture: str) -> None:
    changes = {
        "model.architecture": architecture,
        "model.encoder_layers": 1 if architecture != "decoder" else 5,
        "model.decoder_layers": 2 if architecture != "encoder" else 0,
        "pretrain.objective": "masked_lm" if architecture == "encoder" else "prefix_lm",
    }
    if architecture == "decoder":
        changes["model.bidirectional_prefix"] = True
    if architecture == "encoder":
        changes |= {
            "tasks": {"question_answering": YAML(typ="safe").load(TEXT)["tasks"]["question_answering"]},
            "data": {
                **NO_TASKS["data"],
                "question_answering": [{"source": "botocore", "reader": "botocore_questions"}],
            },
        }
    config = loaded(tmp_path, changes).model.config(vocab_size=600)
    for key, restrain in (("lora_rank", add_lora), ("freeze_layers", freeze_lowest)):
        decided = []
        for value in (1, 2, 3, config.d_model - 1, config.d_model):
            try:
                restrain(new_model(config, seed=0), value)
                possible = True
            except ValueError:
                possible = False
            assert refused(tmp_path, {**changes, f"finetune.{key}": value}) is not possible
            decided.append(possible)
        assert {*decided} == {True, False}


def test_an_optimizer_goes_with_a_strategy_where_the_trainer_takes_it(tmp_path: Path) -> None:
    decided = []
    for strategy in ("auto", "ddp", "fsdp", "tensor_parallel"):
        used = hardware(strategy=strategy)
        trainer = build_trainer(used, choose(used, 32, True), 1, 1, 1, 1.0, [])
        for optimizer in ("adamw", "muon", "adafactor"):
            try:
                require_possible(trainer, tiny.config(), optimizer)
                possible = True
            except PipelineError:
                possible = False
            for section in ("pretrain", "finetune"):
                changes = {f"{section}.strategy": strategy, f"{section}.optimizer": optimizer}
                assert refused(tmp_path, changes) is not possible
            decided.append(possible)
    assert decided.count(False) == 4


def test_spans_are_counted_as_the_objective_counts_them(tmp_path: Path) -> None:
    decided = []
    for length in (8, 126, 128, 129, 130, 131, 512):
        for rate, mean in ((0.5, 1.0), (0.25, 1.0), (0.15, 3.0), (0.9, 1.5), (0.99, 8.0), (0.01, 1.0)):
            try:
                corruption(rate, mean, sentinels=64).spans_and_noise(length)
                possible = True
            except PipelineError:
                possible = False
            changes = {"sequence_length": length, "corruption_rate": rate, "mean_span_length": mean}
            assert refused(tmp_path, {f"pretrain.{key}": value for key, value in changes.items()}) is not possible
            decided.append(possible)
    assert 2 <= decided.count(False) <= len(decided) - 2
    assert not refused(tmp_path, {"pretrain.mean_span_length": 1.0, "pretrain.objective": "denoising"})
