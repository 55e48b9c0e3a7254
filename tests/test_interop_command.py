"""The command lines of the exports where their libraries are not installed: one line that says what to install."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import tiny
from two_hands import model_folder, names

from lightning_modules.interop import ctranslate2, huggingface, onnx

Main = Callable[[Sequence[str]], int]
COMMANDS: list[tuple[Main, list[str], list[str]]] = [
    (huggingface.main, ["export"], ["transformers"]),
    (huggingface.main, ["import"], ["transformers"]),
    (ctranslate2.main, [], ["ctranslate2", "ctranslate2.specs"]),
    (onnx.main, [], ["onnxruntime"]),
]


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")  # of torch
@pytest.mark.parametrize(("main", "command", "missing"), COMMANDS, ids=["export", "import", "ctranslate2", "onnx"])
def test_a_library_that_is_missing_is_one_line_with_what_to_install(
    main: Main,
    command: list[str],
    missing: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, before = model_folder(tmp_path, tiny.model(encoder_layers=1, decoder_layers=1)), names(tmp_path)
    for library in missing:
        monkeypatch.setitem(sys.modules, library, None)
    assert main([*command, str(folder), str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert missing[0] in said
    assert said.endswith(": pip install '.[interop]'\n")
    assert said.count("\n") == 1
    assert names(tmp_path) == before
