"""Raw files, opened: which there are of a format, and their bytes line by line, unpacked where they are packed.

Formats: txt, jsonl, json, csv, tsv, parquet, each also .gz or .zst. Everything is read as a stream. A file that cannot
be read raises PipelineError.
"""

import io
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa

from lightning_modules.errors import PipelineError

TEXT_FORMATS = (".txt",)
TABLE_FORMATS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
CHUNK = 1 << 20  # bytes read at a time
_TOLD = 5  # files that are named of those that are left out


def format_of(path: Path) -> str:
    """`.jsonl` for `a.jsonl` and `a.jsonl.zst`."""
    name = path.name.lower()
    for suffix in COMPRESSIONS:
        name = name.removesuffix(suffix)
    return Path(name).suffix


def files_in(folder: Path, formats: Collection[str]) -> list[Path]:
    """The files of these formats in `folder` and below, hidden ones apart, in the order of their names.

    Raises PipelineError where there is none.
    """
    present = _files_below(folder)
    files = [path for path in present if format_of(path) in formats]
    if not files:
        what = f"holds no {', '.join(formats)} file" if folder.is_dir() else "is not there: run the fetch stage first"
        there = f" (it holds {present[0].name}{', …' if len(present) > 1 else ''})" if present else ""
        raise PipelineError(f"{folder} {what}{there}")
    return files


def tell_left_out(who: str, folder: Path, formats: Collection[str]) -> None:
    """Prints one line on the files that `files_in` leaves out, hidden ones apart; nothing where it takes all."""
    present = _files_below(folder)
    names = [path.relative_to(folder) for path in present if format_of(path) not in formats]
    if names:
        told = [os.fsencode(name).decode(errors="replace") for name in names[:_TOLD]]  # a name may be no UTF-8
        told += [f"and {len(names) - _TOLD:,} more"] if len(names) > _TOLD else []
        count = f"{len(names):,} of {len(present):,} files in {folder}"
        print(f"{who}: left out {count}, being none of {', '.join(formats)}: {', '.join(told)}", flush=True)


def _files_below(folder: Path) -> list[Path]:
    """All files but hidden ones, also behind links to folders.

    Links may lead in circles: no folder is entered twice, and none that `folder` stands in.
    """
    top, entered, files = folder.resolve(), set[Path](), list[Path]()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = Path(place).resolve()
        if real in entered or (real != top and top.is_relative_to(real)):
            folders.clear()
            continue
        entered.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += [Path(place, name) for name in names if not name.startswith(".")]
    return sorted(path for path in files if path.is_file())


def open_raw(path: Path) -> BinaryIO:
    """Opens a file for reading bytes, decompressing .gz and .zst (also of several members, one after the other)."""
    compression = COMPRESSIONS.get(path.suffix.lower())
    try:
        stream = pa.input_stream(str(path), compression=compression)
    except OSError as error:
        raise PipelineError(f"{path} cannot be opened: {error}") from None
    return cast(BinaryIO, io.BufferedReader(stream, CHUNK))


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(line number, line without its end and without a byte-order mark). Raises PipelineError on a damaged file."""
    for number, line in read_parts(path, -1):
        yield number, line.rstrip(b"\r\n")


def read_parts(path: Path, most: int) -> Iterator[tuple[int, bytes]]:
    """(line number, line with its end), a line of more than `most` bytes in parts. Raises as `read_lines` does."""
    number, ended = 0, True
    try:
        with open_raw(path) as stream:
            while part := stream.readline(most):
                if number == 0:
                    part = _without_mark(path, part)
                number += ended
                ended = part.endswith(b"\n")
                yield number, part
    except OSError as error:  # truncated or damaged compressed data, or a failing disk
        raise PipelineError(f"{path} cannot be read to its end ({error}): bring the file in again") from None


def returns_alone(path: Path) -> str:
    """What to do where lines end with carriage returns alone, as on old Macintoshes: all would be one line. Else ""."""
    with open_raw(path) as stream:
        start = stream.read(CHUNK)
    if b"\r" not in start[:-1] or b"\n" in start:
        return ""
    return f"the lines of {path} end with carriage returns alone: convert the original (tr '\\r' '\\n' < OLD > NEW)"


def _without_mark(path: Path, start: bytes) -> bytes:
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise PipelineError(f"{path} is UTF-16: convert it with iconv -f UTF-16 -t UTF-8")
    return start.removeprefix(b"\xef\xbb\xbf")
