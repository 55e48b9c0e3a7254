"""Cleaning text: HTML, Unicode, white space, filters, cutting."""

import unicodedata
from dataclasses import dataclass
from time import process_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.text import cut, failed_filter, letter_share, normalise, strip_html


@dataclass(frozen=True)
class Limits:
    min_characters: int = 3
    max_characters: int = 50
    min_letter_share: float = 0.5


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<p>Creates a <code>Foo</code>, see <a href='x'>bar</a>.</p>", "Creates a Foo, see bar."),
        ("<p>One.</p> <p>Two.</p>", "One.\nTwo."),
        ("<p>One\nline\n\n  of HTML.</p>", "One line of HTML."),
        ("<ul> <li> <p>One</p> </li> <li>two</li> </ul>", "One\ntwo"),
        ("a<br>b<br/>c", "a\nb\nc"),
        ("<tr><td>1</td><td>2</td></tr>", "1 2"),
        ("<b/>x<p/>", "x"),
        ('<b class="c">x', "x"),
        ("<input disabled>x<a href=y/>", "x"),
        ("Type <your name> and press <b>Enter</b>.", "Type <your name> and press Enter."),
        ("<p>arn:<region>:<account-id>", "arn:<region>:<account-id>"),
        ("<s>old</s> <b>new</b>", "old new"),
        (f"<img src='{'data' * 999}'>x", "x"),
        ('<svg width="9"><path d="M0"/><title>no</title></svg>x', "x"),
        ('<!doctype html>\n<?xml version="1.0"?><p>x', "x"),
        ("# A\n\none<!-- <p> -->\ntwo", "# A\n\none\ntwo"),
        ("# A\n\none <b>two</b>\nthree<br>\nfour<br/>five\n- six", "# A\n\none two\nthree\nfour\nfive\n- six"),
        ("R&amp;D &lt;b&gt; caf&eacute; &#8364;", "R&D <b> café €"),
        ("<i>R&amp;D &lt;b&gt;</i>", "R&D <b>"),
        ("<p>kept</p><script>var gone = 1;</script><style>p {}</style><!-- gone -->", "kept"),
        ('<p title="a > b">x</p>', "x"),
        ("<note><p>inner</p></note>", "inner"),
        ("<fullname>Some Service</fullname>", "Some Service"),
    ],
)
def test_html_becomes_what_a_browser_shows(html: str, text: str) -> None:
    assert strip_html(html) == text


@pytest.mark.parametrize(
    "text",
    [
        *("x < y and y > z", "Hello <your name>!", "List<String> xs", "a ?x=1&copy=2 b", "two\n\nparagraphs"),
        *("We choose a<b and c>d because", "<s>one</s>\n<s>two</s> <pad>", "The <script> tag,\n<title>, <!-- and <b>x"),
        "of </b> alone",
    ],
)
def test_plain_text_survives_html_stripping(text: str) -> None:
    assert strip_html(text) == text


@pytest.mark.parametrize("part", ['<p a="', "<!--", "<b ", "<", "<a x='", "<script>", "<p " + " " * 99])
def test_the_time_of_html_grows_with_its_length_alone(part: str) -> None:
    begin = process_time()
    strip_html("-->" + part * 20_000)
    assert process_time() - begin < 5  # a square would be minutes


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("  a\t b\u00a0 c  ", "a b c"),
        ("a \r\n b\rc\u2028d", "a\nb\nc\nd"),
        ("a\n\n\n\n\nb", "a\n\nb"),
        ("e\u0301", "é"),
        ("a\x00b\ufeffc\u200bd\x85e", "abcd\ne"),
        ("a \u200b b \u200b", "a b"),
        ("e\u200b\u0301 and e\u200d\u0301", "é and e\u200d\u0301"),
        ("👩‍👩‍👧 می‌خواهم", "👩‍👩‍👧 می‌خواهم"),  # joiners are part of the writing
    ],
)
def test_normalisation(raw: str, clean: str) -> None:
    assert normalise(raw) == clean


@given(st.text() | st.text("ae \n\t\u00a0\u2000\u0301\u200b\ufeff\x00"))
def test_normalising_twice_changes_nothing_more(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once
    assert unicodedata.is_normalized("NFC", once)
    assert "  " not in once


@pytest.mark.parametrize(
    ("text", "share"), [("ab12", 0.5), ("a b\nc", 1.0), ("123", 0.0), ("", 0.0), ("हिन्दी", 1.0), ("ä!", 0.5)]
)
def test_letter_share(text: str, share: float) -> None:
    assert letter_share(text) == share


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("ab", "min_characters"),
        ("abc", None),
        ("a" * 50, None),
        ("a" * 51, "max_characters"),
        ("12 ab", None),
        ("123 ab", "min_letter_share"),
    ],
)
def test_the_first_failed_filter_is_named(text: str, reason: str | None) -> None:
    assert failed_filter(text, Limits()) == reason


@given(st.text(alphabet="ab \n", max_size=200), st.integers(1, 30))
def test_cutting_loses_only_white_space(text: str, limit: int) -> None:
    pieces = cut(text, limit)
    assert all(len(piece) <= limit for piece in pieces)
    assert "".join("".join(pieces).split()) == "".join(text.split())


def test_cutting_prefers_the_end_of_a_line_then_of_a_word() -> None:
    assert cut("aaaa bbb\ncc dd ee", 12) == ["aaaa bbb", "cc dd ee"]
    assert cut("aaa bbbb cccc", 10) == ["aaa bbbb", "cccc"]
    assert cut("abcdefgh", 3) == ["abc", "def", "gh"]
