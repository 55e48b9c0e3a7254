"""params.yaml: the shipped file is right, and each kind of mistake is one line that says where it is and what to do."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_modules.errors import PipelineError
from stages.params import Params, load_params
from stages.params_data import HomeAssistantPairs, Table, TextFiles, WheelSource
from stages.tasks import TASKS

SHIPPED = Path(__file__).parents[1] / "params.yaml"
# Mistakes are made in a file of the tests' own, so that the shipped one may be changed.
TEXT = Path(__file__).with_name("params.yaml").read_text(encoding="utf-8")


def changed(old: str, new: str) -> str:
    assert TEXT.count(old) == 1, f"{old!r} must stand once in params.yaml for this test"
    return TEXT.replace(old, new)


def line_of(text: str, part: str) -> int:
    return text[: text.index(part)].count("\n") + 1


def error_of(tmp_path: Path, text: str | bytes) -> str:
    path = tmp_path / "params.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(PipelineError) as caught:
        load_params(path)
    message = str(caught.value).replace(str(path), "params.yaml")
    assert "\n" not in message
    return message


def test_the_shipped_file_is_right() -> None:
    load_params(SHIPPED)


def test_values_come_typed(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(TEXT)
    params = load_params(path)
    assert isinstance(params.sources.remote["botocore"], WheelSource)
    assert set(params.tasks) <= set(TASKS)
    pairs = params.data["translation"][0]
    assert isinstance(pairs, HomeAssistantPairs)
    assert (pairs.from_, pairs.to) == ("en", "de")
    assert params.pretrain.learning_rate == 2e-3


def test_ones_own_files_are_accepted(tmp_path: Path) -> None:
    text = changed("local: {} ", "local: {mine: {path: my/corpus.jsonl.zst}, pairs: {path: pairs.csv}} ")
    text = text.replace(
        "  translation:\n",
        "    - {source: mine, reader: text, split: paragraph}\n  translation:\n"
        "    - {source: pairs, reader: table, columns: {source: English, target: Deutsch}, group: chapter}\n",
        1,
    )
    path = tmp_path / "params.yaml"
    path.write_text(text)
    params = load_params(path)
    assert params.sources.local["mine"].path == Path("my/corpus.jsonl.zst")
    text_entry, table = params.data["pretraining"][2], params.data["translation"][0]
    assert isinstance(text_entry, TextFiles)
    assert isinstance(table, Table)
    assert (table.columns, table.group) == ({"source": "English", "target": "Deutsch"}, "chapter")


PAIRS = "{source: homeassistant, reader: homeassistant_pairs, from: en, to: de}"
HUB = "{kind: hub, path: wikitext, name: v1, split: train, revision: main"


@pytest.mark.parametrize(
    ("old", "new", "at", "says"),
    [
        ("  heads: 6", "  heads: 7", "  heads:", "model.heads: 7 does not divide d_model (192)"),
        ("  d_model: 192", "  d_modle: 192", "  d_modle", "model.d_modle: unknown key; did you mean d_model?"),
        ("  d_ff: 768", "  depth_of_it: 768", "  depth", "model.depth_of_it: unknown key; known are preset, st"),
        ("seed: 1 ", "seed: one ", "seed:", "seed: got 'one', must be a whole number"),
        ("seed: 1 ", "seed: true ", "seed:", "seed: got True, must be a whole number"),
        ("seed: 1 ", "sead: 1 ", "sead:", "sead: unknown key; did you mean seed?"),
        ("  steps: 1200", "  steps: -1", "  steps: -1", "pretrain.steps: got -1, must be greater than or equal to 0"),
        ("  steps: 1200", "  steps: 0", "  steps: 0", "pretrain.steps: 0 is for a model that was trained before"),
        ("  steps: 1200", "  steps: 12.5", "  steps: 12.5", "pretrain.steps: got 12.5, must be a whole number"),
        ("  steps: 1200", "  steps:", "  steps: ", "pretrain.steps: got nothing, must be a whole number"),
        ("  steps: 1200", "  steps: 100", "  warmup_steps: 200", "pretrain.warmup_steps: 200 exceeds pretrain.steps"),
        ("  devices: 1", "  devices: 0", "  devices: 0", "finetune.devices: got 0, must be auto or a whole number"),
        ("  norm: pre ", "  norm: before ", "  norm: b", "model.norm: got 'before', must be 'pre' or 'post'"),
        ("  mean_span_length: 3.0", "  mean_span_length: .inf", "  mean_span", "pretrain.mean_span_length: got inf"),
        ("  max_records: 500", "  # gone", "evaluate:", "evaluate.max_records: this key is missing: add it"),
        ("  vocab_size: 8192", "  vocab_size: 500", "  vocab_size", "tokenizer.vocab_size: got 500, must be greater"),
        ("  sequence_length: 256", "  sequence_length: 999", "  sequence_length", "999 exceeds model.max_length, 512"),
        ("  batch_tokens: 4096", "  batch_tokens: 100", "  batch_tokens", "cannot hold one pair of tasks.translation"),
        ("  max_characters: 20000", "  max_characters: 2", "  max_characters", "2 is below prepare.min_characters, 3"),
        ("version: 1.44.5", "version: 1.44", "botocore: {kind", "version: got 1.44, must be text (in quotes, where"),
        ("8f16a56d", "8F16", "botocore: {kind", "sources.remote.botocore.sha256: got '8F16"),
        ("kind: wheel, package: botocore", "kind: weel, package: botocore", "botocore: {kind", "did you mean wheel?"),
        ("local: {} ", "local: {botocore: {path: x}} ", "local:", "a source of this name in sources.remote already"),
        ("local: {} ", "local: {a/b: {path: x}} ", "local:", "sources.local.a/b: got 'a/b', must match pattern"),
        ("local: {} ", "local: {-x: {path: x}} ", "local:", "sources.local.-x: got '-x', must match pattern"),
        ("local: {} ", "local: {a: {path: x, split: line}} ", "local:", "sources.local.a.split: unknown key; known"),
        ("local: {} ", f"local: {{}}\n  remote2: {HUB}}}", "  remote2", "sources.remote2: unknown key; did you mean"),
        (PAIRS, PAIRS.replace("homeassistant,", "homeasistant,"), "homeasistant", "did you mean homeassistant?"),
        (PAIRS, PAIRS.replace("from:", "form:"), "form:", "data.translation[0].form: unknown key; did you mean from?"),
        (PAIRS, PAIRS.replace(", to: de", ""), "_pairs", "data.translation[0].to: this key is missing: add it"),
        (PAIRS, PAIRS.replace("_pairs", "_pair"), "_pair,", "did you mean homeassistant_pairs?"),
        (
            PAIRS,
            "{source: botocore, reader: parallel, target: homeasistant}",
            "reader: parallel",
            "data.translation[0].target: no such source: 'homeasistant'; did you mean homeassistant?",
        ),
        (PAIRS, "{source: botocore}", "{source: botocore}", "data.translation[0].reader: this key is missing"),
        (PAIRS, "{source: botocore, reader: text, split: line}", "reader: text", "gives text, but translation needs"),
        (
            PAIRS,
            "{source: botocore, reader: table, columns: {sourse: a, target: b}}",
            "reader: table",
            "data.translation[0].columns.sourse: not a field of translation, whose fields are source, target; did you",
        ),
        (
            PAIRS,
            "{source: botocore, reader: table, columns: {source: a}}",
            "reader: table",
            "data.translation[0].columns: the field target is missing: add target:",
        ),
        (
            "languages: [en, de]",
            "languages: []",
            "languages: [",
            "data.pretraining[1].languages: got [], must have at least 1 item, not 0",
        ),
        (
            "languages: [en, de]",
            "languages: [en, 3]",
            "languages: [",
            "data.pretraining[1].languages[1]: got 3, must be",
        ),
        ("  summarization:   ", "  sumarization:   ", "  sumarization:", "did you mean summarization?"),
        ("  translation:        {steps", "  # {steps", "  translation:\n", "data.translation: unknown purpose"),
        ("tasks:  ", "tasks: []\nold: ", "old:", "old: unknown key"),
        ("local: {} ", "local: {a: {path: 5}} ", "local:", "a.path: got 5, must be text, the path of a file or folder"),
        ("experiment: default", "experiment: ''", "  experiment", "tracking.experiment: got '', must have at least 1"),
    ],
)
def test_a_mistake_is_one_line_with_its_place(tmp_path: Path, old: str, new: str, at: str, says: str) -> None:
    text = changed(old, new)
    message = error_of(tmp_path, text)
    assert message.startswith(f"params.yaml:{line_of(text, at)}: ")
    assert says in message


@pytest.mark.parametrize("value", ["yes", "[1]", "{a: 1}", "2.5", ""])
def test_all_forms_that_a_value_may_have_are_told(tmp_path: Path, value: str) -> None:
    text = TEXT.replace("  compile: auto", f"  compile: {value}", 1)
    message = error_of(tmp_path, text)
    assert message.startswith(f"params.yaml:{line_of(text, '  compile:')}: pretrain.compile: got ")
    assert message.endswith(", must be 'auto', true or false")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "params.yaml:1: the file is empty"),
        ("# nothing but a comment\n", "params.yaml:1: the file is empty"),
        ("- 1\n", "params.yaml:1: must be a mapping"),
        ("seed: 1\nmodel:\n\td_model: 4\n", "params.yaml:3: "),
        ("seed: 1\nmodel: {heads: 2\n", "params.yaml:3: "),
        ("seed: 1\nseed: 2\n", 'params.yaml:2: found duplicate key "seed": the key is there twice: remove one'),
        ("a: 1\nb: {x: 1, x: 2}\n", "params.yaml:2: found duplicate key"),
        (b"seed: \xff\n", "params.yaml cannot be read: "),
    ],
)
def test_a_file_that_is_not_ours_at_all(tmp_path: Path, text: str | bytes, says: str) -> None:
    assert error_of(tmp_path, text).startswith(says)


def test_several_mistakes_are_counted_and_the_first_is_told(tmp_path: Path) -> None:
    text = changed("  d_ff: 768", "  d_ff: none").replace("  norm: pre", "  norm: before")
    message = error_of(tmp_path, text)
    assert "model.d_ff: got 'none'" in message
    assert message.endswith("(1 more after this)")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="does not exist: run this from the repository's root"):
        load_params(tmp_path / "params.yaml")


LINES = TEXT.split("\n")
VALUES = st.sampled_from(
    ["", "-3", "0", "1.5", "true", "[]", "{}", "x", "{a: 1}", "[a: 1]", "1e999", "~", "2024-01-01", "&a"]
)


@settings(max_examples=150)
@given(line=st.integers(0, len(LINES) - 1), value=VALUES, drop=st.booleans())
def test_any_edited_line_is_accepted_or_one_clear_error(tmp_path_factory, line: int, value: str, drop: bool) -> None:  # type: ignore[no-untyped-def]
    key = LINES[line].split(":")[0]
    edited = [*LINES[:line], *([] if drop else [f"{key}: {value}"]), *LINES[line + 1 :]]
    path = tmp_path_factory.mktemp("edited") / "params.yaml"
    path.write_text("\n".join(edited))
    message = ""
    try:
        assert isinstance(load_params(path), Params)
    except PipelineError as error:
        message = str(error)
    assert not message or re.match(f"{re.escape(str(path))}:[0-9]+: [^\n]+$", message)


def test_the_command_says_ok_or_the_error(tmp_path: Path) -> None:
    def check() -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "stages.params"]
        return subprocess.run(
            command, cwd=tmp_path, env={"PYTHONPATH": str(SHIPPED.parent)}, capture_output=True, text=True, check=False
        )

    (tmp_path / "params.yaml").write_text(TEXT)
    right = check()
    assert (right.returncode, right.stdout, right.stderr) == (0, "params.yaml: ok\n", "")
    (tmp_path / "params.yaml").write_text(changed("  heads: 6", "  heads: 5"))
    wrong = check()
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert wrong.stderr == (
        f"error: params.yaml:{line_of(TEXT, '  heads: 6')}: model.heads: 5 does not divide d_model (192); change one, "
        "or set head_width\n"
    )
