"""Text made clean: HTML out, Unicode and white space normalised, unusable texts found, long ones cut.

Pure functions of strings. Stripping HTML costs about 10 µs for a paragraph, everything else about 0.1 µs a character
or less, on one core.
"""

import html
import re
import unicodedata
from typing import Protocol

from selectolax.lexbor import LexborHTMLParser


class Limits(Protocol):
    """Which texts are usable: the section `prepare` of params.yaml."""

    @property
    def min_characters(self) -> int:
        """Shorter texts are dropped."""

    @property
    def max_characters(self) -> int:
        """Longer texts are cut or dropped."""

    @property
    def min_letter_share(self) -> float:
        """Texts with fewer letters are dropped (share of the characters that are not white space)."""


FILTERS = ("empty", "min_characters", "max_characters", "min_letter_share")  # in the order in which they apply


def _names(names: str) -> frozenset[str]:
    return frozenset(names.split())


# Between two blocks a line ends, and inside one the source's own lines mean nothing.
_BLOCKS = _names("""
    address article aside blockquote body caption center dd dialog div dl dt fieldset figcaption figure footer form
    h1 h2 h3 h4 h5 h6 head header html legend li main menu nav note ol optgroup option p para pre search section table
    tbody td tfoot th thead title tr ul
""")
_BREAKS = _names("br details hr summary")  # end a line; Markdown, whose own lines mean something, has them
_CELLS, _UNSEEN = _names("td th"), _names("script style svg template")
# Beside HTML's names those of MathML, and of DocBook what the documentation in botocore has.
_NAMES = _names("""
    a abbr acronym applet area audio b base basefont bdi bdo big button canvas cite code col colgroup data datalist
    del dfn em embed font frame frameset i iframe img input ins kbd label link map mark marquee meta meter nobr noframes
    noscript object output param picture progress q rp rt ruby s samp select slot small source span strike strong sub
    sup textarea time track tt u var video wbr annotation math mfrac mi mn mo mover mrow mspace msqrt mstyle msub
    msubsup msup mtable mtd mtext mtr munder munderover semantics filename fullname important replaceable xhtml zonbook
""").union(_BLOCKS, _BREAKS, _UNSEEN)
# Tags that need no partner. The others' names are words, too, that stand in brackets for something: <title>, <address>.
_ALONE = _names("""
    blockquote br dd div dl dt fieldset figcaption h1 h2 h3 h4 h5 h6 hr html li ol p para pre tbody td tfoot th thead
    tr ul
""")
_FLAGS = (
    "allowfullscreen|async|autoplay|checked|compact|controls|default|defer|disabled|download|hidden|inert|ismap|"
    "itemscope|loop|multiple|muted|noshade|novalidate|nowrap|open|playsinline|readonly|required|reversed|selected"
)
_ATTRIBUTES = (
    rf"""(\s+(?:[a-z_:@][\w:.@-]*\s*=|(?:{_FLAGS})(?=[\s/>]))"""
    r"""(?:[^<>"']++|"(?:[^"<]*+|[^"]{0,999})"|'(?:[^'<]*+|[^']{0,999})')*+)?"""
)
_MARKUP = re.compile(rf"<(/?)([a-z][a-z0-9]*){_ATTRIBUTES}\s*(/?)>|<", re.I)  # every tag and every other "<"
_COMMENT = re.compile(r"<!--.*?-->", re.S)
_PROLOGUE = re.compile(r"<(?:!doctype|\?xml)\b[^<>]*>", re.I)
_LINE_AFTER_BREAK = re.compile(r"(<[bh]r\b[^<>]*>)[^\S\n]*\n", re.I)
_ENTITY = re.compile(r"&(?:[a-z][a-z0-9]*|#[0-9]+|#x[0-9a-f]+);", re.I)

_UNWANTED = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b\u2060\ufeff\ufffe\uffff]")  # control, zero-width, no character
_BLANK_LINES = re.compile(r"\n{3,}")


def strip_html(text: str) -> str:
    """The text that a browser would show, a line a paragraph (or list item, row …); plain text comes back as it is.

    Inline tags leave nothing behind: `<code>x</code>, y` becomes `x, y`. Character entities become characters. Text
    without blocks keeps its own lines. "x < y", "a<b and c>d" and "<your name>" are no tags and survive.
    """
    if "<" in text:
        text = _without_comments(text)
        names = _tags(text)
        if names:
            joined = not names.isdisjoint(_BLOCKS)
            text = " ".join(text.split()) if joined else _LINE_AFTER_BREAK.sub(r"\1", text)
            text = _without_tags(text, names)
            lines = (" ".join(line.split()) for line in text.split("\n"))
            return "\n".join(line for line in lines if line) if joined else text
    return _without_entities(text)


def _without_comments(text: str) -> str:
    if "<!" in text or "<?" in text:
        end = text.rfind("-->") + 3  # behind it no comment ends, and each "<!--" would be followed to the text's end
        text = _PROLOGUE.sub("", _COMMENT.sub("", text[:end]) + text[end:])
    return text


def _tags(text: str) -> set[str]:
    """The names of HTML whose tags this text has.

    A tag shows what it is by attributes, its partner or the slash of one without, some by their names. <s> and </s>
    without any other tag are what language models read more often than text struck out, and no tags.
    """
    sure, starts, ends = set[str](), set[str](), set[str]()
    for end, name, attributes, closed in _MARKUP.findall(text):
        name = name.lower()
        (sure if attributes or closed or name in _ALONE else ends if end else starts).add(name)
    sure &= _NAMES
    pairs = starts & ends & _NAMES
    return sure | pairs if sure or pairs != {"s"} else set()


def _without_tags(text: str, names: set[str]) -> str:
    """`text` without the tags of these names; what else looks like a tag stays."""

    def instead(match: re.Match[str]) -> str:
        name = (match[2] or "").lower()
        if name not in names:
            return match[0].replace("<", "&lt;")
        if name in _UNSEEN:
            return match[0]
        return " " if name in _CELLS else "\n" if name in _BLOCKS or name in _BREAKS else ""

    text = _MARKUP.sub(instead, text)
    if "<" not in text:
        return _without_entities(text)
    tree = LexborHTMLParser(text, is_fragment=True)
    tree.strip_tags(sorted(_UNSEEN), recursive=True)
    return tree.root.text() if tree.root else ""


def _without_entities(text: str) -> str:
    return _ENTITY.sub(lambda match: html.unescape(match[0]), text) if "&" in text else text


def normalise(text: str) -> str:
    """Unicode NFC without control and zero-width characters; single spaces; at most one blank line in a row.

    Another time it changes nothing.
    """
    lines = (" ".join(line.split()) for line in unicodedata.normalize("NFC", text).splitlines())
    text = "\n".join(line if line.isprintable() else _without_unwanted(line) for line in lines)
    return _BLANK_LINES.sub("\n\n", text).strip()


def _without_unwanted(line: str) -> str:
    """What an unwanted character parted stands together then: spaces are to be joined, letters to be composed."""
    left = _UNWANTED.sub("", line)
    return line if left == line else " ".join(unicodedata.normalize("NFC", left).split())


def letter_share(text: str) -> float:
    """Share of letters among the characters that are not white space (0–1).

    Combining marks count as letters: Hindi or Thai words would fail without their vowel signs.
    """
    dense = "".join(text.split())
    letters = sum(map(str.isalpha, dense))
    if not dense.isascii():
        letters += sum(unicodedata.category(character)[0] == "M" for character in dense if character > "\x7f")
    return letters / len(dense) if dense else 0.0


def failed_filter(text: str, limits: Limits) -> str | None:
    """The first of FILTERS that drops `text`, or None for a usable one."""
    if not text:
        return "empty"
    if len(text) < limits.min_characters:
        return "min_characters"
    if len(text) > limits.max_characters:
        return "max_characters"
    if letter_share(text) < limits.min_letter_share:
        return "min_letter_share"
    return None


def cut(text: str, max_characters: int) -> list[str]:
    """Pieces of at most `max_characters`, cut at a line's end in the second half, else at a space, else anywhere."""
    pieces = []
    while len(text) > max_characters:
        end = text.rfind("\n", max_characters // 2, max_characters + 1)
        end = end if end > 0 else text.rfind(" ", 1, max_characters + 1)
        end = end if end > 0 else max_characters
        pieces.append(text[:end].strip())
        text = text[end:].strip()
    return [*pieces, text]
