"""The parts that the report's page is made of: paragraphs, tables, numbers. Text is escaped here, unless told raw."""

from collections.abc import Iterable, Sequence
from html import escape


def paragraph(text: str, raw: bool = False) -> str:
    """A paragraph; `raw`: of HTML."""
    return f"<p>{text if raw else escape(text)}</p>"


def link(page: tuple[str, str]) -> str:
    """A name that leads to an address; only the name, where that is none of the web's."""
    name, address = page
    web = address.startswith(("http://", "https://"))
    return f'<a href="{escape(address)}">{escape(name)}</a>' if web else escape(name)


def table(words: Sequence[str], numbers: Sequence[str], lines: Iterable[str]) -> str:
    """A table of `line`s, under a header of columns of words and columns of numbers."""
    header = "".join(f"<th>{escape(word)}</th>" for word in words)
    header += "".join(f'<th class="number">{escape(number)}</th>' for number in numbers)
    return f'<div class="wide"><table><tr>{header}</tr>{"".join(lines)}</table></div>'


def line(words: Sequence[str], numbers: Sequence[str], kind: str = "") -> str:
    """A row of a table; `kind` is its class."""
    cells = "".join(f"<td>{escape(word)}</td>" for word in words)
    cells += "".join(f'<td class="number">{escape(number)}</td>' for number in numbers)
    return f'<tr class="{kind}">{cells}</tr>'


def number_text(value: object) -> str:
    """A number as a reader wants it: thousands apart, small ones with three places; a dash for None."""
    if isinstance(value, float) and value != round(value) and abs(value) < 100:
        return f"{value:.3f}"
    return f"{value:,.0f}" if isinstance(value, int | float) else "–" if value is None else str(value)
