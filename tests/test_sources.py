"""Opening raw files: every format and compression, bad records reported with their line, damaged files refused."""

import csv
import gzip
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from lightning_modules.errors import PipelineError
from stages.raw_files import files_in, format_of, read_lines
from stages.sources import Bad, Row, read_json, read_rows, unusable, value_at

ROWS = [{"body": "first, line", "lang": "en"}, {"body": 'zwei "Wörter"', "lang": "de"}]


def packed(path: Path, content: bytes) -> Path:
    packers = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}
    path.write_bytes(packers[path.suffix](content) if path.suffix in packers else content)
    return path


def table_bytes(kind: str) -> bytes:
    if kind == ".json":
        return json.dumps(ROWS, indent=1).encode()
    if kind == ".jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
    if kind == ".parquet":
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(ROWS), buffer)
        return buffer.getvalue()
    if kind == ".tsv":
        return b"body\tlang\n" + "".join(f"{r['body']}\t{r['lang']}\n" for r in ROWS).encode()
    text = io.StringIO()
    writer = csv.DictWriter(text, ["body", "lang"])
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue().encode()


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
def test_tables_of_every_format_and_compression(tmp_path: Path, kind: str, compression: str) -> None:
    path = packed(tmp_path / f"t{kind}{compression}", table_bytes(kind))
    assert format_of(path) == kind
    assert [row.values for row in read_rows(path, ["body", "lang"]) if isinstance(row, Row)] == ROWS


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
def test_lines_without_ends_and_byte_order_mark(tmp_path: Path, compression: str) -> None:
    path = packed(tmp_path / f"t.txt{compression}", "\ufeffä\r\n\nlast".encode())
    assert list(read_lines(path)) == [(1, "ä".encode()), (2, b""), (3, b"last")]


def test_compressed_members_one_after_the_other(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"a\n") + gzip.compress(b"b\n"))
    compress = zstandard.ZstdCompressor().compress
    (tmp_path / "a.zst").write_bytes(compress(b"a\n") + compress(b"b\n"))
    for name in ("a.gz", "a.zst"):
        assert [line for _, line in read_lines(tmp_path / name)] == [b"a", b"b"]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda _: b"no compressed data"])
def test_damaged_compression_is_an_error_not_a_short_text(tmp_path: Path, suffix: str, damage) -> None:  # type: ignore[no-untyped-def]
    path = packed(tmp_path / f"a.txt{suffix}", b"".join(b"line %d\n" % n for n in range(9999)))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(PipelineError, match=r"a\.txt\..*cannot be read to its end"):
        list(read_lines(path))


def test_utf16_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("text".encode("utf-16"))
    with pytest.raises(PipelineError, match="is UTF-16: convert it"):
        list(read_lines(tmp_path / "a.txt"))


def test_bad_json_lines_are_reported_with_line_and_reason(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [b'{"body": "fine"}', b"{", b"", b"[1]", b'{"body": "\xff"}', b"[" * 200_000, b"9" * 5000, b'{"body": "x"}']
    path.write_bytes(b"\n".join(lines))
    items = list(read_rows(path, ["body"]))
    assert [item.line for item in items if isinstance(item, Row)] == [1, 8]
    reasons = {item.line: item.reason for item in items if isinstance(item, Bad)}
    assert list(reasons) == [2, 4, 5, 6, 7]
    assert reasons[2].startswith("not JSON")
    assert reasons[4] == "not a JSON object"
    assert reasons[5].startswith("not UTF-8 (byte 11")


def test_a_json_file_is_a_list_of_records_or_one_error(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"body": "fine"}, 7, {"body": "x"}]')
    assert [(type(item), item.line) for item in read_rows(path, ["body"])] == [(Row, 1), (Bad, 2), (Row, 3)]
    for text, message in (("[{", "is not json"), ("{}", "is not a list of records: use reader squad if")):
        path.write_text(text)
        with pytest.raises(PipelineError, match=message):
            list(read_rows(path, ["body"]))


def test_json_under_the_name_of_json_lines_and_the_reverse(tmp_path: Path) -> None:
    lines, path = tmp_path / "a.jsonl", tmp_path / "a.json"
    for text in ('{"body": "x"}\n\n{"body": "y"}\n', '{"body": "x"}\n{"body'):
        path.write_text(text)
        for read in (lambda: list(read_rows(path, ["body"])), lambda: read_json(path)):
            with pytest.raises(PipelineError, match=r"seems to hold a record a line: rename .* from \.json to \.jsonl"):
                read()
    for text in ('{"data": []}', '{"data":\n{}}', '{"data": []}\n'):
        path.write_text(text)
        with pytest.raises(PipelineError, match="use reader squad if") as caught:
            list(read_rows(path, ["body"]))
        assert "rename" not in str(caught.value)
    for text in ('[{"body": "x"}]', '[\n{"body": "x"},\n'):
        lines.write_text(text)
        first = next(read_rows(lines, ["body"]))
        assert isinstance(first, Bad)
        assert first.reason.endswith("it begins as a list does: rename the original from .jsonl to .json")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "en;de\na;b\n", "separated by ';', but .csv is read with commas, .tsv with tabs: convert or rename"),
        ("a.csv", "en\tde\na\tb\n", r"separated by '\\t', but"),
        ("a.tsv", "en,de\na,b\n", "separated by ',', but"),
        ("a.csv", "en,de\ra,b\rc,d\r", r"the lines of .*a\.csv end with carriage returns alone: convert the original"),
        ("a.tsv", "en\tde\ra\tb\r", r"a\.tsv end with carriage returns alone"),
        ("a.csv", "e\rn,de\na,b\n", r"not csv \(a carriage return in a cell without quotes\)"),
        ("a.csv", "en,de,de\na,b,c\n", "has 2 columns of the name 'de': rename those that are not meant"),
        ("a.csv", "\na,b\n", "has no column 'de'"),
    ],
)
def test_tables_of_another_kind_say_what_to_do(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content, newline="")
    with pytest.raises(PipelineError, match=message):
        list(read_rows(tmp_path / name, ["de"]))


def test_a_name_that_stands_twice_matters_only_where_it_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("body,n,n\none,1,2\n")
    [row] = [row for row in read_rows(tmp_path / "a.csv", ["body"]) if isinstance(row, Row)]
    assert row.values["body"] == "one"
    twice = pa.table([["a"], ["b"], ["c"]], names=["body", "n", "n"])
    pq.write_table(twice, tmp_path / "a.parquet")
    with pytest.raises(PipelineError, match="has 2 columns of the name 'n'"):
        list(read_rows(tmp_path / "a.parquet", ["body", "n"]))


def test_a_return_within_a_cell_is_told_in_our_words(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"body,n\na\rb,1\nfine,2\n")
    bad, row = read_rows(tmp_path / "a.csv", ["body"])
    assert bad == Bad(2, "not csv (a carriage return in a cell without quotes)")
    assert row == Row(3, {"body": "fine", "n": "2"})


def test_csv_fields_of_many_lines_and_bad_widths(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('body,n\n"one\ntwo",1\nshort\n"fine",2\na,b,c\n\n"x"y,3\nlast,4\n')
    items = list(read_rows(path, ["body"]))
    assert [item.values["body"] for item in items if isinstance(item, Row)] == ["one\ntwo", "fine", "last"]
    assert [(item.line, item.reason.split(" (")[0]) for item in items if isinstance(item, Bad)] == [
        (4, "1 cells, but 2 columns"),
        (6, "3 cells, but 2 columns"),
        (8, "not csv"),
    ]


@pytest.mark.parametrize("opened", ['"never closed,0', 'x,"never closed'])
@pytest.mark.parametrize("more", ["", 'a,"quoted, as it should be"\n', '"a ""word""",b\n"c\nd",e\n'])
def test_an_unclosed_quote_costs_its_own_line_only(tmp_path: Path, opened: str, more: str) -> None:
    path = tmp_path / "a.csv"
    good = [f"row {n},{n}" for n in range(1000)]
    path.write_text("\n".join(["body,n", *good[:1], opened, *good[1:], ""]) + more)
    items = list(read_rows(path, ["body"]))
    rows = [item for item in items if isinstance(item, Row)]
    assert [row.values["body"] for row in rows[:1000]] == [f"row {n}" for n in range(1000)]
    assert [row.line for row in rows[:1000]] == [2, *range(4, 1003)]
    assert len(rows) == 1000 + more.count("\n") - more.count("c\nd")
    [bad] = [item for item in items if isinstance(item, Bad)]
    assert bad.line == 3
    assert bad.reason.endswith("a quotation mark that opens here is not closed; the next line is read as a row")


def test_every_unclosed_quote_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("body,n\n" + "".join(f'"open {n},0\nrow {n},{n}\n' for n in range(300)))
    items = list(read_rows(path, ["body"]))
    assert [item.line for item in items if isinstance(item, Bad)] == list(range(2, 602, 2))
    assert [item.values["body"] for item in items if isinstance(item, Row)] == [f"row {n}" for n in range(300)]


def test_a_cell_that_is_too_long_costs_its_own_line_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.sources._LONGEST_CELL", 100)
    path = tmp_path / "a.csv"
    path.write_text("body,n\n" + "x" * 101 + ",1\n" + '"open,2\n' + "".join(f"row {n},{n}\n" for n in range(50)))
    items = list(read_rows(path, ["body"]))
    assert [item.line for item in items if isinstance(item, Bad)] == [2, 3]
    assert [item.values["body"] for item in items if isinstance(item, Row)] == [f"row {n}" for n in range(50)]


def test_a_record_of_many_lines_with_too_few_cells_is_named_with_its_last_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('body,n\n"one\ntwo\nthree"\nfine,1\n')
    assert list(read_rows(tmp_path / "a.csv", ["body"])) == [
        Bad(2, "1 cells, but 2 columns (in lines 2 to 4)"),
        Row(5, {"body": "fine", "n": "1"}),
    ]


def test_a_first_line_that_is_not_csv_is_no_row_with_names(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('"body,n\nfine,1\n')
    with pytest.raises(PipelineError, match=r"a\.csv: line 1, which names the columns, is not csv \("):
        list(read_rows(tmp_path / "a.csv", ["body"]))


def test_csv_bytes_that_are_not_utf8_spoil_their_own_row_only(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'body,n\none,1\n"caf\xe9",2\nthree,3\n')
    one, bad, three = (row.values["body"] for row in read_rows(path, ["body"]) if isinstance(row, Row))
    assert (one, three) == ("one", "three")
    assert unusable(bad) == "not UTF-8 (character 4)"


def test_a_quote_in_tsv_is_a_quote(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text('body\tn\n"unclosed\t1\nnext\t2\n')
    assert [row.values["body"] for row in read_rows(path, ["body"]) if isinstance(row, Row)] == ['"unclosed', "next"]


@pytest.mark.parametrize("kind", [".csv", ".tsv", ".parquet"])
def test_a_column_that_is_not_there_is_named_with_the_nearest(tmp_path: Path, kind: str) -> None:
    path = packed(tmp_path / f"t{kind}", table_bytes(kind))
    with pytest.raises(PipelineError, match=r"has no column 'boddy'.*did you mean 'body'"):
        list(read_rows(path, ["boddy"]))


def test_parquet_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"hello")
    with pytest.raises(PipelineError, match="cannot be read as parquet"):
        list(read_rows(tmp_path / "a.parquet", ["body"]))


def test_parquet_text_that_is_not_utf8_spoils_its_own_row_only(tmp_path: Path) -> None:
    bodies = pa.Array.from_buffers(
        pa.string(), 3, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xffc")]
    )
    pq.write_table(pa.table({"body": bodies}), tmp_path / "a.parquet")
    assert list(read_rows(tmp_path / "a.parquet", ["body"])) == [
        Row(1, {"body": "a"}),
        Bad(2, "not UTF-8"),
        Row(3, {"body": "c"}),
    ]


def test_names_with_dots_reach_into_nested_values() -> None:
    row = {"translation": {"en": "yes"}, "answers": {"text": ["one", "two"]}, "a.b": "flat"}
    assert value_at(row, "translation.en") == "yes"
    assert value_at(row, "answers.text.1") == "two"
    assert value_at(row, "a.b") == "flat"
    for missing in ("translation.de", "answers.text.2", "translation.en.x", "b"):
        with pytest.raises(KeyError) as caught:
            value_at(row, missing)
        assert caught.value.args == (missing,)


def test_files_of_a_folder_in_order_without_hidden_ones(tmp_path: Path) -> None:
    for name in ("b.txt", "sub/a.txt.gz", ".hidden/x.txt", "a.csv", "README"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    assert [path.relative_to(tmp_path).as_posix() for path in files_in(tmp_path, [".txt"])] == ["b.txt", "sub/a.txt.gz"]
    with pytest.raises(PipelineError, match=r"holds no \.parquet file \(it holds README, …\)"):
        files_in(tmp_path, [".parquet"])
    with pytest.raises(PipelineError, match="run the fetch stage first"):
        files_in(tmp_path / "none", [".txt"])
