"""Readers: a raw file in, records with a purpose's fields out. `READERS` has them by their name in params.yaml.

A reader yields `Row`s whose values are the fields, all text, and `group` (may be empty), or `Bad`s. It streams: one
record is held at a time, and what the reader of an embedded wheel holds: a service's or an integration's texts.
"""

import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lightning_modules.errors import PipelineError
from stages import embedded
from stages.params_data import Entry, HomeAssistantPairs, HomeAssistantStrings, Table, TextFiles
from stages.sources import TABLE_FORMATS, TEXT_FORMATS, Bad, Row, files_in, read_lines, read_rows, value_at

GROUP = "group"


class Reader(NamedTuple):
    """How files become records. `plain`: what comes out has no HTML left in it."""

    read: Callable[[Path, Any], Iterator[Row | Bad]]
    formats: tuple[str, ...]
    plain: bool = False


def entry_files(entry: Entry, raw: Path) -> list[Path]:
    """The files of an entry of `data` below `raw`, data/raw. Raises PipelineError where there is none."""
    return files_in(raw / entry.source, READERS[entry.reader].formats)


def _text(file: Path, entry: TextFiles) -> Iterator[Row | Bad]:
    """A document a line, a block between blank lines, or the file."""
    first, block = 1, list[bytes]()
    for number, line in read_lines(file):
        if entry.split == "line" or (entry.split == "paragraph" and not line.strip()):
            yield from _document(first, block)
            first, block = number, []
        block.append(line)
    yield from _document(first, block)


def _document(first_line: int, block: list[bytes]) -> Iterator[Row | Bad]:
    for number, line in enumerate(block, start=first_line):
        try:
            line.decode()
        except UnicodeDecodeError as error:
            yield Bad(number, f"not UTF-8 (byte {error.start + 1} of the line)")
            return
    text = b"\n".join(block).decode()
    if text.strip():
        yield Row(first_line, {"text": text, GROUP: ""})


def _table(file: Path, entry: Table) -> Iterator[Row | Bad]:
    """`columns` names, for each of our fields, the file's column; `group` optionally that of the groups."""
    for row in read_rows(file, [*entry.columns.values(), *([entry.group] if entry.group else [])]):
        yield row if isinstance(row, Bad) else _fields(row, entry)


def _fields(row: Row, entry: Table) -> Row | Bad:
    fields: dict[str, str] = {}
    try:
        for field, column in entry.columns.items():
            value = value_at(row.values, column)
            if value is None or (isinstance(value, str) and not value.strip()):
                return Bad(row.line, f"column {column!r} is empty")
            if not isinstance(value, str):
                return Bad(row.line, f"column {column!r} is of type {type(value).__name__}, not text")
            fields[field] = value
        group = value_at(row.values, entry.group) if entry.group else None
    except KeyError as error:
        return Bad(row.line, f"no column {error.args[0]!r}")
    fields[GROUP] = "" if group is None else str(group)
    for value in fields.values():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            return Bad(row.line, f"not UTF-8 (character {error.start + 1} of a value)")
    return Row(row.line, fields)


def _embedded(records: Callable[[Path, Any], Iterable[dict[str, str]]]) -> Reader:
    """A reader of a wheel whose content is known."""

    def read(file: Path, entry: Any) -> Iterator[Row | Bad]:
        try:
            for record in records(file, entry):
                yield Row(0, record)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, LookupError, TypeError, ValueError) as error:
            problem = f"{type(error).__name__}: {error}"
            raise PipelineError(f"{file} is not what reader {entry.reader} expects ({problem})") from error

    return Reader(read, formats=(".whl",), plain=True)


def _strings(wheel: Path, entry: HomeAssistantStrings) -> Iterator[dict[str, str]]:
    return embedded.homeassistant_strings(wheel, entry.languages)


def _pairs(wheel: Path, entry: HomeAssistantPairs) -> Iterator[dict[str, str]]:
    return embedded.homeassistant_pairs(wheel, entry.from_, entry.to)


READERS: dict[str, Reader] = {
    "text": Reader(_text, TEXT_FORMATS),
    "table": Reader(_table, TABLE_FORMATS),
    "botocore_documents": _embedded(lambda wheel, _: embedded.botocore_documents(wheel)),
    "botocore_operations": _embedded(lambda wheel, _: embedded.botocore_operations(wheel)),
    "botocore_questions": _embedded(lambda wheel, _: embedded.botocore_questions(wheel)),
    "homeassistant_strings": _embedded(_strings),
    "homeassistant_pairs": _embedded(_pairs),
}
