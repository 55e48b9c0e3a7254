"""The files of a folder: links to folders are followed, not in circles, and what is left out is told."""

import os
from pathlib import Path

import pytest
from preparing import write

from stages.raw_files import files_in, returns_alone, tell_left_out


def test_linked_folders_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    for name in ("mine/a.txt", "mine/sub/b.txt", "other/c.txt", "not mine.txt"):
        write(tmp_path / name, "x")
    (folder / "far").symlink_to("../other")
    (folder / "far again").symlink_to("../other")
    (folder / "up").symlink_to("..")
    (folder / "sub/self").symlink_to("..")
    (tmp_path / "other/back").symlink_to("../mine")
    files = [path.relative_to(folder).as_posix() for path in files_in(folder, [".txt"])]
    assert files == ["a.txt", "far/c.txt", "sub/b.txt"]


def test_what_is_left_out_is_one_line_without_hidden_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.txt", "b.md", "noext", "sub/c.jsonl", ".DS_Store", ".git/config"):
        write(tmp_path / name, "x")
    tell_left_out("mine", tmp_path, [".txt", ".csv"])
    told = f"mine: left out 3 of 4 files in {tmp_path}, being none of .txt, .csv: b.md, noext, sub/c.jsonl\n"
    assert capsys.readouterr().out == told
    tell_left_out("mine", tmp_path, [".txt", ".md", "", ".jsonl"])
    assert capsys.readouterr().out == ""


def test_of_many_that_are_left_out_the_first_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(1007):
        write(tmp_path / f"{number:04}.md", "x")
    (tmp_path / os.fsdecode(b"0000\xff.md")).write_text("a name that is not UTF-8")
    tell_left_out("mine", tmp_path, [".txt"])
    told = capsys.readouterr().out
    assert "left out 1,008 of 1,008 files" in told
    assert told.endswith(": 0000.md, 0000\N{REPLACEMENT CHARACTER}.md, 0001.md, 0002.md, 0003.md, and 1,003 more\n")


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"a\rb", True), (b"a\rb\r", True), (b"a\r\nb", False), (b"a\nb", False), (b"a\r", False), (b"", False)],
)
def test_lines_that_end_with_returns_alone(tmp_path: Path, content: bytes, expected: bool) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    assert bool(returns_alone(tmp_path / "a.txt")) == expected
