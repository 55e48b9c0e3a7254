"""What cannot be written: one line, and what was there before is left as it was."""

import errno
import os
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from tiny import model, write_tokenizer

from lightning_modules.disk import write_whole, writing
from lightning_modules.errors import PipelineError
from lightning_modules.model_folder import save_model


def full(path: Path) -> None:
    path.write_text("half of")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    path, seen = tmp_path / "made/file.txt", list[list[str]]()
    path.parent.mkdir()
    path.write_text("old")

    def check(unfinished: Path) -> None:
        seen.append(sorted(file.read_text() for file in path.parent.iterdir()))
        assert unfinished.read_text() == "new"

    write_whole(path, lambda unfinished: unfinished.write_text("new"), check)
    assert seen == [["new", "old"]]
    assert [file.read_text() for file in path.parent.iterdir()] == ["new"]


def test_where_there_is_no_room_it_says_so_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(
        PipelineError, match=r"file\.txt cannot be written \(.*No space left.* GB free there\)"
    ) as caught:
        write_whole(path, full)
    assert "\n" not in str(caught.value)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["old"]


def test_what_is_no_fault_of_the_disk_is_raised_as_it_is(tmp_path: Path) -> None:
    def wrong(path: Path) -> None:
        path.write_text("half of")
        raise RuntimeError("wrong")

    with pytest.raises(RuntimeError, match=r"^wrong$"):
        write_whole(tmp_path / "file.txt", wrong)
    assert list(tmp_path.iterdir()) == []


def test_safetensors_errors_are_told_as_others_are(tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").mkdir()
    with (
        pytest.raises(PipelineError, match=r"weights\.safetensors cannot be written \("),
        writing(tmp_path / "weights.safetensors"),
    ):
        save_file({"a": torch.zeros(2)}, tmp_path / "weights.safetensors")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_model_that_cannot_be_written_is_one_line(tmp_path: Path, name: str) -> None:
    tokenizer_file, folder = write_tokenizer(tmp_path / "tokenizer"), tmp_path / "model"
    (folder / name).mkdir(parents=True)  # in the file's place
    with pytest.raises(PipelineError, match=r"model cannot be written \(") as caught:
        save_model(folder, model(), tokenizer_file, {})
    assert "\n" not in str(caught.value)


def test_others_may_read_a_models_weights_as_they_may_the_rest(tmp_path: Path) -> None:
    save_model(tmp_path, tiny.model(), write_tokenizer(tmp_path / "tokenizer"), {})
    assert load_file(tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "config.json").stat().st_mode
