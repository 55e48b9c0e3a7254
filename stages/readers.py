"""Readers: raw files in, records with a purpose's fields out. `READERS` has them by their name in params.yaml.

A reader yields `Row`s whose values are the fields, all text, and `group` (may be empty), or `Bad`s. It streams: one
record is held at a time, and what the reader of an embedded wheel holds: a service's or an integration's texts.
"""

import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from lightning_modules.errors import PipelineError
from stages import embedded
from stages.dialogues import dialogue_rows, one_line, turns_of
from stages.params_data import (
    Dialogues,
    Entry,
    HomeAssistantPairs,
    HomeAssistantStrings,
    Parallel,
    ParallelTexts,
    Squad,
    Table,
    TextFiles,
)
from stages.raw_files import TABLE_FORMATS, TEXT_FORMATS, files_in, read_lines, read_parts, tell_left_out
from stages.sources import Bad, Row, group_at, read_rows, unusable, value_at
from stages.splits import digest
from stages.squad import squad_rows
from stages.tasks import TASKS
from stages.text import normalise, strip_html

GROUP = "group"
_LONGEST = 1 << 22  # bytes of a text that are held at a time: somewhat more than War and Peace


class Reader(NamedTuple):
    """How files become records: `read(entry, file)`, or with two files. `plain`: what comes out has no HTML in it."""

    read: Callable[..., Iterator[Row | Bad]]
    formats: tuple[str, ...]
    plain: bool = False


def entry_files(entry: Entry, raw: Path) -> list[tuple[Path, ...]]:
    """The files of an entry of `data` below `raw`, data/raw; of parallel ones two at a time.

    Raises PipelineError where there is none, or one side of parallel ones has more than the other.
    """
    formats = READERS[entry.reader].formats
    files = files_in(raw / entry.source, formats)
    if not isinstance(entry, Parallel | ParallelTexts):
        return [(file,) for file in files]
    others = files_in(raw / entry.target, formats)
    if len(files) != len(others):
        counts = f"{raw / entry.source} holds {len(files)} text files, {raw / entry.target} {len(others)}"
        raise PipelineError(f"{counts}: parallel files go in pairs, in the order of their names")
    return list(zip(files, others, strict=True))


def tell_unread(entries: Iterable[Entry], raw: Path) -> None:
    """Prints a line for each source in `raw` some of whose files none of the entries reads."""
    formats: dict[str, set[str]] = defaultdict(set)
    for entry in entries:
        for source in (entry.source, entry.target) if isinstance(entry, Parallel | ParallelTexts) else (entry.source,):
            formats[source].update(READERS[entry.reader].formats)
    for source, read in formats.items():
        tell_left_out(f"source {source}", raw / source, sorted(read))


def _text(entry: TextFiles, file: Path) -> Iterator[Row | Bad]:
    """A document a line, a block between blank lines, or the file. A longer one than _LONGEST comes in parts.

    The parts of a document have one group.
    """
    group = ""
    for number, block, ended in _blocks(entry, file):
        try:
            text = block.decode()
        except UnicodeDecodeError as error:
            before = block[: error.start]
            line, byte = number + before.count(b"\n"), error.start - before.rfind(b"\n")
            yield Bad(line, f"not UTF-8 (byte {byte} of the line)")
        else:
            group = group or ("" if ended else digest(text))
            if text.strip():
                yield Row(number, {"text": text, GROUP: group})
        group = "" if ended else group


def _blocks(entry: TextFiles, file: Path) -> Iterator[tuple[int, bytes, bool]]:
    """(first line, bytes of a document or of a part of one, whether it ends there)."""
    first, block, size = 1, list[bytes](), 0
    for number, part in read_parts(file, _LONGEST):
        if entry.split == "paragraph" and not part.strip() and (not block or block[-1].endswith(b"\n")):
            yield first, b"".join(block), True
            first, block, size = number + 1, [], 0
            continue
        block.append(part)
        size += len(part)
        if entry.split == "line" and part.endswith(b"\n"):
            yield first, b"".join(block), True
            first, block, size = number + 1, [], 0
        elif size >= _LONGEST:
            whole = b"".join(block)
            place = _place_to_cut(whole)
            yield first, whole[:place], False
            block, size = [whole[place:]], len(whole) - place
            first = number - whole[place:].rstrip(b"\n").count(b"\n")
    yield first, b"".join(block), True


def _place_to_cut(text: bytes) -> int:
    """Before the last white space, where that is in the second half; else before the last character."""
    place = max(text.rfind(b" "), text.rfind(b"\n"))
    if place < len(text) // 2:
        place = len(text) - 1
        while place > len(text) - 4 and text[place] & 0xC0 == 0x80:  # within a character of several bytes
            place -= 1
    return place


def _parallel(entry: Parallel | ParallelTexts, file: Path, other: Path) -> Iterator[Row | Bad]:
    """A pair a line. Lines that are empty in both files are none.

    The group is the text on the side whose source's name comes first, so that a pair is in the same split in both
    directions, and its text for pre-training too. Raises PipelineError where one file has more lines than the other.
    """
    lines, others = read_lines(file), read_lines(other)
    for one, two in zip_longest(lines, others):
        if one is None or two is None:
            (longer, rest), shorter = ((other, others), file) if one is None else ((file, lines), other)
            last = (one or two)[0]
            counts = f"{shorter} has {last - 1} lines, {longer} {last + sum(1 for _ in rest)}"
            raise PipelineError(f"{counts}: line n of one must be the translation of line n of the other")
        if one[1].strip() or two[1].strip():
            yield _pair(entry, one[0], (file, one[1]), (other, two[1]))


def _pair(entry: Parallel | ParallelTexts, number: int, one: tuple[Path, bytes], two: tuple[Path, bytes]) -> Row | Bad:
    texts = list[str]()
    for file, line in (one, two):
        try:
            texts.append(line.decode())
        except UnicodeDecodeError as error:
            return Bad(number, f"not UTF-8 (byte {error.start + 1} of the line in {file.as_posix()})")
        if not line.strip():
            return Bad(number, f"the line is empty in {file.as_posix()}")
    first = texts[0] if entry.source < entry.target else texts[1]
    group = digest(normalise(strip_html(first)))
    if isinstance(entry, ParallelTexts):  # HTML goes here, a line at a time: of both together it would make one
        return Row(number, {"text": "\n".join(one_line(strip_html(text)) for text in texts), GROUP: group})
    return Row(number, {"source": texts[0], "target": texts[1], GROUP: group})


def _table(entry: Table, file: Path) -> Iterator[Row | Bad]:
    """`columns` names, for each of our fields, the file's column; `group` optionally that of the groups.

    An answer to be pointed at may be the empty text: there is none. Nothing else may be empty, the group neither.
    """
    pointing = (task.fields for task in TASKS.values() if task.kind == "span")
    answer = next((fields[-1] for fields in pointing if set(fields) == set(entry.columns)), None)
    for row in read_rows(file, [*entry.columns.values(), *([entry.group] if entry.group else [])]):
        yield row if isinstance(row, Bad) else _fields(row, entry, answer)


def _fields(row: Row, entry: Table, answer: str | None) -> Row | Bad:
    fields: dict[str, str] = {}
    try:
        for field, column in entry.columns.items():
            value = _as_text(field, value_at(row.values, column))
            if field == answer and isinstance(value, str) and not value.strip():
                value = ""
            elif problem := unusable(value):
                return Bad(row.line, f"column {column!r} is {problem}")
            fields[field] = value
    except KeyError as error:
        return Bad(row.line, f"no column {error.args[0]!r}")
    group = group_at(row, entry.group)
    if isinstance(group, Bad):
        return group
    fields[GROUP] = group
    if not entry.group and entry.to:  # as of `_parallel`
        first = min(entry.columns, key=entry.columns.__getitem__)
        fields[GROUP] = digest(normalise(strip_html(fields[first])))
    return Row(row.line, fields)


def _as_text(field: str, value: Any) -> Any:
    """Two fields need not be text in a file: labels may be numbers, and a history a list of turns."""
    if field == "label" and isinstance(value, int):
        return str(value).lower()
    if field == "history" and isinstance(value, list) and value and all(isinstance(turn, str) for turn in value):
        return "\n".join(map(one_line, value))
    return value


def _dialogues(entry: Dialogues, file: Path) -> Iterator[Row | Bad]:
    """A record for each turn but the first: what was said last, and the turn."""
    for row in read_rows(file, [entry.turns]):
        if isinstance(row, Bad):
            yield row
            continue
        turns = turns_of(row.values, entry.turns, entry.text)
        if isinstance(turns, str):
            yield Bad(row.line, turns)
        else:
            yield from (Row(row.line, record) for record in dialogue_rows(turns, entry.history))


def _squad(entry: Squad, file: Path) -> Iterator[Row | Bad]:
    return squad_rows(file, entry.group)


def _embedded(records: Callable[[Path, Any], Iterable[dict[str, str]]]) -> Reader:
    """A reader of a wheel whose content is known."""

    def read(entry: Any, file: Path) -> Iterator[Row | Bad]:
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
    "parallel": Reader(_parallel, TEXT_FORMATS),
    "parallel_texts": Reader(_parallel, TEXT_FORMATS, plain=True),
    "dialogues": Reader(_dialogues, TABLE_FORMATS),
    "squad": Reader(_squad, TABLE_FORMATS, plain=True),
    "botocore_documents": _embedded(lambda wheel, _: embedded.botocore_documents(wheel)),
    "botocore_operations": _embedded(lambda wheel, _: embedded.botocore_operations(wheel)),
    "botocore_questions": _embedded(lambda wheel, entry: embedded.botocore_questions(wheel, entry.fields)),
    "botocore_methods": _embedded(lambda wheel, _: embedded.botocore_methods(wheel)),
    "homeassistant_strings": _embedded(_strings),
    "homeassistant_pairs": _embedded(_pairs),
    "chitchat_dialogues": _embedded(lambda wheel, entry: embedded.chitchat_dialogues(wheel, entry.history)),
    "chitchat_documents": _embedded(lambda wheel, _: embedded.chitchat_documents(wheel)),
}
