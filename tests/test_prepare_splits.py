"""Texts that are few documents: told before and after they fall into one split, with what helps."""

from pathlib import Path
from typing import Any

import pytest
from preparing import letters, run, write, write_jsonl

from lightning_modules.errors import PipelineError
from stages.splits import split_of

BOOK = "\n\n".join(f"paragraph {letters(number)} of a long book" for number in range(400))
LINES = "\n".join(f"line {letters(number)}" for number in range(100))


def text(source: str, split: str) -> dict[str, Any]:
    return {"source": source, "reader": "text", "split": split}


def refusal(root: Path, entry: dict[str, Any], purpose: str = "pretraining") -> str:
    with pytest.raises(PipelineError, match=rf"^data\.{purpose}: none of its \d+ records falls in the ") as caught:
        run(root, {purpose: [entry]}, max_characters=500)
    return str(caught.value)


@pytest.mark.parametrize(
    ("split", "content", "advice"),
    [
        ("file", BOOK, "use split: paragraph or line, or add data"),
        ("paragraph", BOOK.replace("\n\n", "\n"), "use split: line, or add data"),
        ("line", BOOK.replace("\n\n", " "), "add data"),
    ],
)
def test_one_document_is_no_matter_of_shares(tmp_path: Path, split: str, content: str, advice: str) -> None:
    write(tmp_path / "raw/mine/a.txt", content)
    told = refusal(tmp_path, text("mine", split))
    assert told.endswith(f"they are of 1 document, and a document stays whole in one split: {advice}")


def test_lines_that_end_with_returns_alone_are_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "raw/mine/a.txt"
    write(path, "")
    path.write_bytes(LINES[:300].replace("\n", "\r").encode())
    told = refusal(tmp_path, text("mine", "line"))
    assert f"split: the lines of {path} end with carriage returns alone: convert the original (tr " in told


def test_a_share_is_to_be_raised_where_there_are_groups_enough(tmp_path: Path) -> None:
    trained = [number for number in range(99) if split_of(f"site {number}", 0.25, 0.25) == "train"][:3]
    entry = {"source": "mine", "reader": "table", "columns": {"text": "body"}, "group": "site"}
    rows = [{"body": f"text {letters(n)} {letters(m)}", "site": f"site {n}"} for n in trained for m in range(5)]
    for count, advice in ((3, "add data or raise prepare.validation_share (0.25)"), (1, "add data")):
        write_jsonl(tmp_path / "raw/mine/a.jsonl", rows[: 5 * count])
        told = refusal(tmp_path, entry)
        assert f"none of its {5 * count} records falls in the validation split: they are of {count} document" in told
        assert told.endswith(f"stays whole in one split: {advice}")


def test_of_a_mixture_the_source_that_is_one_document_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    book = tmp_path / "raw/book/a.txt"
    write(book, BOOK)
    write(tmp_path / "raw/lines/a.txt", LINES)
    run(tmp_path, {"pretraining": [text("book", "file"), text("lines", "line")]}, max_characters=500)
    told = capsys.readouterr().out
    assert told.startswith(f"data.pretraining: all of source book is one document, in {book}, kept whole in the ")
    assert told.endswith(" split: use split: paragraph or line, or add data\n")
    assert told.count("\n") == 1
    write(tmp_path / "raw/book/b.txt", LINES)
    run(tmp_path, {"pretraining": [text("book", "file"), text("lines", "line")]}, max_characters=500)
    assert capsys.readouterr().out.startswith("data.pretraining: at least 8")
    run(tmp_path, {"pretraining": [text("book", "paragraph"), text("lines", "line")]}, max_characters=500)
    assert capsys.readouterr().out == ""
    book.write_bytes(LINES[:300].replace("\n", "\r").encode())
    (tmp_path / "raw/book/b.txt").unlink()
    run(tmp_path, {"pretraining": [text("book", "line"), text("lines", "line")]})
    assert (
        f"split: the lines of {book} end with carriage returns alone: convert the original" in capsys.readouterr().out
    )


def test_of_a_mixture_a_large_group_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"body": f"text {letters(n)}", "site": "wiki" if n % 10 else f"site {n}"} for n in range(300)]
    write_jsonl(tmp_path / "raw/mine/a.jsonl", rows)
    entry = {"source": "mine", "reader": "table", "columns": {"text": "body"}, "group": "site"}
    run(tmp_path, {"pretraining": [entry]})
    split = split_of("wiki", 0.25, 0.25)
    told = f"of source mine is one group, wiki, kept whole in the {split} split: add data\n"
    assert capsys.readouterr().out.endswith(told)
