"""Records of raw tables: the rows of jsonl, json, csv, tsv and parquet files, and the values in them.

Everything is read as a stream (`stages.raw_files`): a record is held in memory, of parquet a page a column (compressed
parquet is unpacked on the disk first). A record that cannot be read comes out as `Bad`, with its line and the reason; a
file that cannot be read raises PipelineError.
"""

import codecs
import csv
import json
import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from lightning_modules.errors import PipelineError
from stages.json_list import is_lines, json_list
from stages.raw_files import CHUNK, COMPRESSIONS, format_of, open_raw, read_lines, read_parts, returns_alone

_BATCH = 64  # parquet rows decoded at a time
_LONGEST_CELL = 1 << 24  # characters: what a quotation mark that is never closed takes is held, and read again
_AS_LINES = ", but seems to hold a record a line: rename the original from .json to .jsonl"
_AS_LIST = "; it begins as a list does: rename the original from .jsonl to .json"
_UNCLOSED = ": a quotation mark that opens here is not closed; the next line is read as a row"


class Row(NamedTuple):
    """A record as its file has it. `line` counts from 1: lines in text formats, rows in parquet and json; 0: none."""

    line: int
    values: dict[str, Any]


class Bad(NamedTuple):
    """A record that cannot be used, and why."""

    line: int
    reason: str


def read_rows(path: Path, columns: Sequence[str]) -> Iterator[Row | Bad]:
    """The rows of a table. Raises PipelineError where a csv, tsv or parquet file has not one of `columns`.

    A name with dots reaches into nested values: `translation.en`, `answers.text.0`.
    """
    match format_of(path):
        case ".jsonl":
            yield from _jsonl_rows(path)
        case ".json":
            yield from _json_rows(path)
        case ".parquet":
            yield from _parquet_rows(path, columns)
        case _:
            yield from _delimited_rows(path, columns)


def value_at(values: Any, name: str) -> Any:
    """The value of column `name`, which may be a path into nested values. Raises KeyError(name) where there is none."""
    if isinstance(values, dict) and name in values:
        return values[name]
    head, dot, rest = name.partition(".")
    if isinstance(values, list) and head.isdigit() and int(head) < len(values):
        inner = values[int(head)]
    elif isinstance(values, dict) and head in values:
        inner = values[head]
    else:
        raise KeyError(name)
    try:
        return value_at(inner, rest) if dot else inner
    except KeyError:
        raise KeyError(name) from None


def group_at(row: Row, column: str | None) -> str | Bad:
    """What `column` says of the row's group, as text; "" where no column is asked for, Bad where it says nothing."""
    if not column:
        return ""
    try:
        value = value_at(row.values, column)
    except KeyError as error:
        return Bad(row.line, f"no column {error.args[0]!r}")
    group = "" if value is None else str(value).strip()
    problem = unusable(group)
    return Bad(row.line, f"column {column!r} is {problem}") if problem else group


def unusable(value: Any) -> str | None:
    """Why a value cannot be a text of a record, or None."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return "empty"
    if not isinstance(value, str):
        return f"of type {type(value).__name__}, not text"
    try:
        value.encode()
    except UnicodeEncodeError as error:
        return f"not UTF-8 (character {error.start + 1})"
    return None


def read_json(path: Path) -> Any:
    """The content of a json file. Raises PipelineError where it is damaged."""
    text = b"\n".join(line for _, line in read_lines(path))
    try:
        return json.loads(text.decode())
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise PipelineError(f"{path} is not json ({error}){_AS_LINES if _holds_lines(path) else ''}") from None


def _json_rows(path: Path) -> Iterator[Row | Bad]:
    number = 0
    try:
        for number, value in enumerate(json_list(_decoded(path)), start=1):
            yield Row(number, value) if isinstance(value, dict) else Bad(number, "not a JSON object")
    except TypeError:
        advice = ": use reader squad if it is SQuAD's, or name the files to be read one by one in sources.local"
        raise PipelineError(f"{path} is not a list of records{_AS_LINES if _holds_lines(path) else advice}") from None
    except (ValueError, RecursionError) as error:
        raise PipelineError(f"{path} is not json behind its record {number} ({error})") from None


def _holds_lines(path: Path) -> bool:
    return is_lines(part for _, part in read_parts(path, CHUNK))


def _decoded(path: Path) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    for _, part in read_parts(path, CHUNK):
        yield decoder.decode(part)
    yield decoder.decode(b"", final=True)


def _jsonl_rows(path: Path) -> Iterator[Row | Bad]:
    for number, line in read_lines(path):
        if not line.strip():
            continue
        hint = _AS_LIST if number == 1 and line.lstrip().startswith(b"[") else ""
        try:
            values = json.loads(line.decode())
        except UnicodeDecodeError as error:
            yield Bad(number, f"not UTF-8 (byte {error.start + 1} of the line)")
        except json.JSONDecodeError as error:
            yield Bad(number, f"not JSON ({error.msg}, column {error.colno}){hint}")
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets nested as deep
            yield Bad(number, f"not usable JSON ({error})")
        else:
            yield Row(number, values) if isinstance(values, dict) else Bad(number, f"not a JSON object{hint}")


def _delimited_rows(path: Path, columns: Sequence[str]) -> Iterator[Row | Bad]:
    """Csv as RFC 4180 has it, tsv without quoting, as corpora have it. The first line names the columns.

    A quotation mark that is not closed makes one record of all lines to the next one, or to the file's end. The first
    of them alone is bad then, and the others are read again, as rows of their own.
    """
    csv.field_size_limit(_LONGEST_CELL)
    kind = format_of(path)[1:]
    # Undecodable bytes become lone surrogates, so that they spoil only their own record.
    unread = (line.decode(errors="surrogateescape") + "\n" for _, line in read_lines(path))
    record, again, start = list[str](), deque[str](), 1
    header: list[str] | None = None

    def lines() -> Iterator[str]:
        while line := again.popleft() if again else next(unread, ""):
            record.append(line)
            yield line

    reader = _delimited(lines(), kind)
    while True:
        start += len(record)
        record.clear()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problem = f"not {kind} ({_told(error)})"
            if header is None:
                names = f"{path}: line {start}, which names the columns, is {problem}"
                raise PipelineError(returns_alone(path) or names) from None
            yield Bad(start, f"{problem}{_UNCLOSED if len(record) > 1 else ''}")
            again.extendleft(reversed(record[1:]))
            del record[1:]
            reader = _delimited(lines(), kind)
            continue
        if header is None:
            header = cells
            _require(path, header, columns)
        elif len(cells) == len(header):
            yield Row(start, dict(zip(header, cells, strict=True)))
        elif cells:
            where = f" (in lines {start} to {start + len(record) - 1})" if len(record) > 1 else ""
            yield Bad(start, f"{len(cells)} cells, but {len(header)} columns{where}")


def _delimited(lines: Iterator[str], kind: str) -> Iterator[list[str]]:
    if kind == "tsv":
        return csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE, strict=True)
    return csv.reader(lines, strict=True)


def _told(error: csv.Error) -> str:
    """What it says; of a carriage return Python advises whoever opens the file, in a program."""
    return "a carriage return in a cell without quotes" if str(error).startswith("new-line") else str(error)


def _parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[Row | Bad]:
    try:
        # Without read-ahead, which would hold a row group: files of one group of gigabytes exist.
        with _unpacked(path) as plain, pq.ParquetFile(plain, pre_buffer=False, buffer_size=CHUNK) as file:
            present = file.schema_arrow.names
            _require(path, present, columns)
            wanted = [name if name in present else name.split(".")[0] for name in columns]
            number = 0
            for batch in file.iter_batches(_BATCH, columns=wanted, use_threads=False):
                for row in range(batch.num_rows):
                    number += 1
                    yield _parquet_row(batch, row, number)
    except (pa.ArrowException, OSError) as error:
        raise PipelineError(f"{path} cannot be read as parquet ({error})") from None


@contextmanager
def _unpacked(path: Path) -> Iterator[Path]:
    """The file, or while it is needed a temporary one without compression: parquet is not read from start to end."""
    if path.suffix.lower() not in COMPRESSIONS:
        yield path
        return
    with NamedTemporaryFile(suffix=".parquet") as file:
        with open_raw(path) as stream:
            shutil.copyfileobj(stream, file, CHUNK)
        file.flush()
        yield Path(file.name)


def _parquet_row(batch: pa.RecordBatch, row: int, number: int) -> Row | Bad:
    try:
        return Row(number, {name: batch[name][row].as_py() for name in batch.schema.names})
    except UnicodeDecodeError:
        return Bad(number, "not UTF-8")


def _require(path: Path, present: Sequence[str], columns: Sequence[str]) -> None:
    for name in columns:
        found = name if name in present else name.split(".")[0]
        if found not in present:
            hint = _hint(name, present, format_of(path))
            raise PipelineError(f"{path} has no column {name!r}, but {', '.join(map(repr, present))}{hint}")
        if (times := present.count(found)) > 1:
            raise PipelineError(f"{path} has {times} columns of the name {found!r}: rename those that are not meant")


def _hint(name: str, present: Sequence[str], kind: str) -> str:
    if len(present) == 1 and kind != ".parquet" and (mark := next((one for one in ";\t,|" if one in present[0]), "")):
        return f": it is separated by {mark!r}, but .csv is read with commas, .tsv with tabs: convert or rename it"
    nearest = get_close_matches(name, present, n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""
