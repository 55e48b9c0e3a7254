"""Conversations → what was said last and the reply, a record for each turn but the first.

Pure functions; a few µs a record.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stages.sources import unusable, value_at
from stages.splits import digest
from stages.text import strip_html


def turns_of(values: Mapping[str, Any], column: str, text: str | None) -> list[str] | str:
    """The turns of a conversation: texts, or records that have their text under the key `text`; or what is wrong."""
    try:
        turns = value_at(values, column)
    except KeyError:
        return f"no column {column!r}"
    if not isinstance(turns, list) or len(turns) < 2:
        return f"column {column!r} is no list of at least two turns"
    texts = list[str]()
    for number, turn in enumerate(turns, start=1):
        try:
            said = value_at(turn, text) if text else turn
        except KeyError:
            return f"turn {number} has no {text!r}"
        if problem := unusable(said):
            return f"turn {number} is {problem}"
        texts.append(said)
    return texts


def dialogue_rows(turns: Sequence[str], most: int) -> Iterator[dict[str, str]]:
    """Records with history (the last `most` turns, a line each), reply and group: the conversation."""
    said, group = [one_line(turn) for turn in turns], digest(*turns)
    for number in range(1, len(turns)):
        yield {"history": "\n".join(said[max(number - most, 0) : number]), "reply": turns[number], "group": group}


def one_line(text: str) -> str:
    """A turn as it stands in a history."""
    return " ".join(text.split())


def plain_turns(history: str) -> str:
    """A history without HTML, a turn a line as before: a browser knows no lines, and would show all turns as one."""
    return "\n".join(one_line(strip_html(turn)) for turn in history.splitlines())


def last_turns(history: str, most: int) -> str:
    """The end of a history of at most `most` characters: whole turns where one fits, else the last one's end."""
    if len(history) <= most:
        return history
    start = history.find("\n", len(history) - most - 1)
    return history[start + 1 :] if start >= 0 else history[-most:]
