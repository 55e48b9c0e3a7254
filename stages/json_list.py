"""The elements of a JSON list one after the other, of a list of any length. Costs what `json` costs, some 50 MB/s."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

_DECODER = json.JSONDecoder()
_IN_NUMBERS = "+-.0123456789Ee"
_LONGEST = 1 << 28  # characters of a value, beyond which it is taken for damaged, not for unfinished


def json_list(pieces: Iterator[str]) -> Iterator[Any]:
    """The elements of the list that `pieces` are the text of; the longest element is held in memory, and a piece.

    Raises TypeError where it is no list, ValueError (or RecursionError) where it is damaged.
    """
    text = _Text(pieces)
    if text.take() != "[":
        raise TypeError("no list")
    mark = "]" if text.peek() == "]" else ","
    if mark == "]":
        text.take()
    while mark == ",":
        yield text.value()
        mark = text.take()
    if mark != "]":
        raise ValueError(f"expecting ',' or ']', not {mark!r}" if mark else "it ends within the list")
    if text.peek():
        raise ValueError("more stands behind the list")


def is_lines(lines: Iterable[bytes]) -> bool:
    """Whether they look like an object a line: the first is one, the second begins another. Empty ones do not count."""
    full = (line for line in lines if line.strip())
    try:
        return isinstance(json.loads(next(full, b"")), dict) and next(full, b"").lstrip().startswith(b"{")
    except (ValueError, RecursionError):
        return False


class _Text:
    """Text that comes in pieces, of which what is read is forgotten."""

    def __init__(self, pieces: Iterator[str]) -> None:
        self._pieces = pieces
        self._text = ""
        self._place = 0

    def peek(self) -> str:
        """The next character that is not white space; "" at the end."""
        while True:
            while self._place < len(self._text) and self._text[self._place] in " \t\n\r":
                self._place += 1
            if self._place < len(self._text):
                return self._text[self._place]
            if not self._read_on():
                return ""

    def take(self) -> str:
        """`peek`, and what it gave is read."""
        character = self.peek()
        self._place += 1
        return character

    def value(self) -> Any:
        """The next value."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._place)
                behind = self._text[end : end + 1]
                # "12" may go on in the next piece, and of "12." the 12 was read.
                if (behind and behind not in _IN_NUMBERS) or not self._read_on():
                    self._place = end
                    return value
            except json.JSONDecodeError:
                if not self._read_on():
                    raise

    def _read_on(self) -> bool:
        """Doubles what is not yet read, so that a long value is not tried too often; False where that cannot be."""
        if len(self._text) - self._place > _LONGEST:
            return False
        parts, length = [self._text[self._place :]], 0
        for piece in self._pieces:
            parts.append(piece)
            length += len(piece)
            if length and length >= len(parts[0]):
                break
        if length:
            self._text, self._place = "".join(parts), 0
        return length > 0
