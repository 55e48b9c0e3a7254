"""The model in params.yaml: presets and what overrides them, and what an architecture can neither learn nor do."""

import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from test_params import TEXT, error_of, line_of

from lightning_modules.transformer.config import TransformerConfig
from lightning_modules.transformer.presets import PRESETS, preset
from stages.params import Params, load_params

OF_THE_TOKENIZER = {"vocab_size", "pad_id", "bos_id", "eos_id"}


def loaded(folder: Path, model: dict[str, Any], objective: Any, tasks: tuple[str, ...] = ()) -> Params:
    """The tests' params.yaml with this section `model`, this objective and, if named, these tasks alone."""
    yaml = YAML()
    values = yaml.load(TEXT)
    values["model"], values["pretrain"]["objective"] = {"start_from": None} | model, objective
    for name in list(values["tasks"]) if tasks else ():
        if name not in tasks:
            del values["tasks"][name], values["data"][name]
    with (folder / "params.yaml").open("w") as file:
        yaml.dump(values, file)
    return load_params(folder / "params.yaml")


def one_objective(architecture: str) -> str:
    return {"encoder": "masked_lm", "decoder": "causal_lm", "encoder_decoder": "denoising"}[architecture]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_shape_and_what_stands_beside_it_overrides_it(tmp_path: Path, name: str) -> None:
    objective = one_objective(preset(name).architecture)
    beside = {"max_length": 2048, "dropout": 0.25, "window": 100}
    params = loaded(tmp_path, {"preset": name, **beside}, objective, ("question_answering",))
    assert params.model.config(vocab_size=900) == preset(name, **beside, vocab_size=900)
    # A fine-tuning has a dropout of its own.
    assert params.model.config(vocab_size=900, dropout=0.5) == preset(
        name, **beside | {"vocab_size": 900, "dropout": 0.5}
    )


@pytest.mark.parametrize("name", ["bert-base", "llama-style", "small-encoder-decoder"])
def test_every_field_may_stand_there_but_those_that_the_tokenizer_decides(tmp_path: Path, name: str) -> None:
    whole = {key: value for key, value in asdict(preset(name)).items() if key not in OF_THE_TOKENIZER}
    whole["max_length"] = 2048
    params = loaded(
        tmp_path, {"preset": "gpt2", **whole}, one_objective(whole["architecture"]), ("question_answering",)
    )
    assert params.model.config(vocab_size=900) == preset(name, vocab_size=900, max_length=2048)
    assert {field.name for field in fields(TransformerConfig)} == whole.keys() | OF_THE_TOKENIZER


def test_an_objective_is_a_name_or_a_mixture(tmp_path: Path) -> None:
    model = {"preset": "small-decoder", "bidirectional_prefix": True}
    assert loaded(tmp_path, model, "prefix_lm").pretrain.objective == {"prefix_lm": 1.0}
    mixture = {"prefix_lm": 1, "causal_lm": 2.5, "denoising": 3}
    assert loaded(tmp_path, model, mixture).pretrain.objective == mixture


ENCODER = ("  preset: small-encoder-decoder ", "  preset: small-encoder ")
DECODER = ("  preset: small-encoder-decoder ", "  preset: small-decoder ")
QUESTIONS = "max_source_tokens: 256, max_target_tokens: 64"


def field(text: str) -> tuple[str, str]:
    return "  d_ff: 768", f"  {text}"


def objective(value: str) -> tuple[str, str]:
    return "  objective: span_corruption ", f"  objective: {value} "


@pytest.mark.parametrize(
    ("changes", "at", "says"),
    [
        # The section itself
        ([field("posittions: rotary")], "  posit", "model.posittions: unknown key; did you mean positions?"),
        ([field("positions: rotari")], "  posit", "model.positions: got 'rotari', must be 'sinusoidal', 'learned', "),
        ([field("window: 1.5")], "  window", "model.window: got 1.5, must be a whole number"),
        ([field("bias: 1")], "  bias", "model.bias: got 1, must be true or false"),
        ([field("rotary_base: fast")], "  rotary", "model.rotary_base: got 'fast', must be a number"),
        ([field("d_ff:")], "  d_ff", "model.d_ff: got nothing, must be a whole number"),
        ([field("vocab_size: 700")], "  vocab_size: 700", "model.vocab_size: unknown key"),
        ([("  preset: small", "  preset: smal")], "  preset", "did you mean small-encoder-decoder?"),
        ([("  preset: small-encoder-decoder ", "  ")], "model:", "model.preset: this key is missing: add it"),
        ([("start_from: null", "start_from: {path: here}")], "  start_from", "sha256: this key is missing: add it"),
        (
            [("start_from: null", "start_from: {pth: a, sha256: b}")],
            "  start_from",
            "pth: unknown key; did you mean path?",
        ),
        # Fields that contradict each other, told where the one at fault stands, else at the section
        ([("  heads: 6", "  heads: 7")], "  heads: 7", "model.heads: 7 does not divide d_model (192)"),
        ([field("key_value_heads: 4")], "  key_value", "model.key_value_heads: 4 does not divide heads (6)"),
        ([field("embeddings: characters")], "model:", "model.tied_output: characters make no matrix"),
        ([field("token_types: 2")], "  token_types", "model.token_types: for an encoder only"),
        ([field("bidirectional_prefix: true")], "  bidirectional", "model.bidirectional_prefix: for a decoder only"),
        ([("  encoder_layers: 3", "  encoder_layers: 0")], "  encoder_layers", "model.encoder_layers: "),
        ([("  heads: 6", "  heads: 0")], "  heads", "model.heads: 0 "),
        ([("  d_model: 192", "  d_model: -4")], "  d_model", "model.d_model: -4 "),
        ([("  dropout: 0.0  ", "  dropout: 1.0  ")], "  dropout: 1.0", "model.dropout: 1.0 "),
        # Objectives
        (
            [DECODER, objective("denoising"), ("  packing: joined ", "  packing: best_fit ")],
            "  packing",
            "pretrain.packing: a decoder that learns denoising cannot keep documents apart: use joined",
        ),
        ([objective("spam")], "  objective", "'spam' is no objective; known are causal_lm, prefix_lm, masked_lm, "),
        ([objective("[]")], "  objective", "must be the name of an objective, or a mixture {name: weight, …}"),
        ([objective("{}")], "  objective", "must be the name of an objective, or a mixture {name: weight, …}"),
        ([objective("")], "  objective", "got nothing, must be the name of an objective, or a mixture"),
        ([objective("{denoising: 0}")], "  objective", "the weight of denoising must be a number above 0"),
        ([objective("{denoising: .nan}")], "  objective", "the weight of denoising must be a number above 0"),
        ([objective("{denoising: true}")], "  objective", "the weight of denoising must be a number above 0"),
        ([("whole_words: false", "whole_words: 0")], "  whole_words", "pretrain.whole_words: got 0, must be true or"),
        # What an architecture cannot learn or do
        (
            [objective("causal_lm")],
            "  objective",
            "pretrain.objective: causal_lm is not for model.architecture encoder_decoder, which learns prefix_lm, ",
        ),
        ([objective("masked_lm")], "  objective", "masked_lm is not for model.architecture encoder_decoder, which"),
        (
            [objective("{denoising: 1, causal_lm: 1}")],
            "  objective",
            "causal_lm is not for model.architecture encoder_",
        ),
        ([DECODER, objective("masked_lm")], "  objective", "masked_lm is not for model.architecture decoder, which"),
        ([ENCODER], "  objective", "span_corruption is not for model.architecture encoder, which learns masked_lm"),
        (
            [DECODER, objective("{causal_lm: 1, prefix_lm: 1}")],
            "  objective",
            "prefix_lm reads the prefix in both directions: add bidirectional_prefix: true to the section model",
        ),
        (
            [ENCODER, objective("masked_lm")],
            "  translation:        {steps",
            "tasks.translation: model.architecture encoder writes no text, it points at answers in its source "
            "and names classes: remove this task, here and from data, or take another architecture "
            "(it can do question_answering)",
        ),
        (
            [DECODER, (QUESTIONS, QUESTIONS.replace("256", "449"))],
            "  question_answering: {steps",
            "tasks.question_answering.max_source_tokens: with max_target_tokens a decoder's sequence has 513 tokens, "
            "model.max_length is 512",
        ),
    ],
)
def test_a_model_that_cannot_be_is_one_line_with_its_place(
    tmp_path: Path, changes: list[tuple[str, str]], at: str, says: str
) -> None:
    text = TEXT
    for old, new in changes:
        assert text.count(old) == 1, f"{old!r} must stand once in params.yaml for this test"
        text = text.replace(old, new)
    message = error_of(tmp_path, text)
    assert message.startswith(f"params.yaml:{line_of(text, at)}: ")
    assert says in message


def test_a_pair_as_long_as_the_model_is_right(tmp_path: Path) -> None:
    text = TEXT.replace(*DECODER).replace(QUESTIONS, QUESTIONS.replace("256", "448"))
    (tmp_path / "params.yaml").write_text(text)
    assert load_params(tmp_path / "params.yaml").tasks["question_answering"].max_source_tokens == 448


def test_reading_params_does_not_cost_the_import_of_torch(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(TEXT)
    code = "import sys; from stages.params import load_params; load_params(); print(*sys.modules)"
    environment = {"PYTHONPATH": str(Path(__file__).parents[1])}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    imported = {name.partition(".")[0] for name in run.stdout.split()}
    assert "pydantic" in imported
    assert imported.isdisjoint({"torch", "numpy", "tokenizers", "pytorch_lightning", "mlflow", "prefect", "dvc"})
