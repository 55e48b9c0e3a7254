"""Personal data: what was planted is gone, what only looks like it stays, and masking twice is masking once."""

from pathlib import Path

import phonenumbers
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from preparing import letters, run, write, write_jsonl

from stages.personal import Masked
from stages.splits import SPLITS

KINDS = ("email", "phone", "ip", "key")
INNOCENT = (
    *(
        "version",
        "Straße",
        "価格",
        "1.2.3",
        "v1.2.3.4",
        "2024-03-11",
        "10:30:45",
        "11/12/2024",
        "12:30",
        "3.14159265358",
    ),
    *("978-3-16-148410-0", "@name", "user@", "x@@y", "std::vector", "a::b", "::", "00:1A:2B:3C:4D:5E", "1700000000"),
    *("arn:aws:iam::123456789012:user", "550e8400-e29b-41d4-a716-446655440000", "€1,299.00", "123456789012", "AKIA"),
    *("sk_test", "ghp_short", "eyJ", "api_key=none", "api_key:", "0x7fffffff", "1.2.3.4.5", "999.1.1.1", "#12345678"),
    *("-----BEGIN", "PRIVATE", "KEY-----", "12345", "(1)", "<EMAIL>", "<PHONE>", "<IP>", "<KEY>", "\n", "\n\n"),
)
LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = st.text(LETTERS, min_size=1, max_size=9)
EMAILS = st.builds(
    "{}@{}.{}".format,
    st.from_regex(r"[a-zé0-9][a-zA-Z0-9._%+-]{0,20}", fullmatch=True),
    st.from_regex(r"[a-zß0-9]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True),
    st.sampled_from(["com", "de", "co.uk", "museum"]),
)
ADDRESSES = st.ip_addresses().map(str).filter(lambda written: any(map(str.isdigit, written)))
REGIONS = ("DE", "FR", "GB", "US", "IN", "BR", "JP", "ZA", "AU", "SE")
PHONES = st.sampled_from(
    [
        phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.INTERNATIONAL)
        for number in map(phonenumbers.example_number, REGIONS)
        if number
    ]
    + ["(202) 456-1111", "202-456-1111", "+12024561111"]
)
KEYS = st.one_of(
    st.from_regex(r"AKIA[A-Z0-9]{16}", fullmatch=True),
    st.from_regex(r"gh[pousr]_[A-Za-z0-9]{36}", fullmatch=True),
    st.from_regex(r"github_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59}", fullmatch=True),
    st.from_regex(r"xox[bp]-[0-9]{11}-[0-9]{11}-[A-Za-z0-9]{24}", fullmatch=True),
    st.from_regex(r"AIza[0-9A-Za-z_-]{35}", fullmatch=True),
    st.from_regex(r"eyJ[A-Za-z0-9_-]{16,40}\.eyJ[A-Za-z0-9_-]{16,40}\.[A-Za-z0-9_-]{43}", fullmatch=True),
    st.from_regex(r"[A-Za-z0-9+/]{64}(\n[A-Za-z0-9+/]{64}){1,3}==", fullmatch=True).map(
        lambda body: f"-----BEGIN RSA PRIVATE KEY-----\n{body}\n-----END RSA PRIVATE KEY-----"
    ),
)
PLANTED = st.one_of(*(st.tuples(st.just(k), s) for k, s in zip(KINDS, (EMAILS, PHONES, ADDRESSES, KEYS), strict=True)))
# Digits of a neighbour could be taken for a part of a telephone number: words stand between.
PARTS = st.lists(st.one_of(st.tuples(st.just(""), WORDS), PLANTED), max_size=8)


def joined(parts: list[tuple[str, str]]) -> str:
    return " and ".join(text for _, text in parts)


@given(PARTS)
def test_what_was_planted_is_gone_and_nothing_else(parts: list[tuple[str, str]]) -> None:
    masked = Masked(joined(parts), KINDS)
    assert masked.text == joined([("", f"<{kind.upper()}>" if kind else text) for kind, text in parts])
    assert masked.counts == {kind: n for kind in KINDS if (n := sum(of == kind for of, _ in parts))}
    again = Masked(masked.text, KINDS)
    assert (again.text, again.counts.total()) == (masked.text, 0)


@given(st.lists(st.one_of(st.sampled_from(INNOCENT), WORDS), max_size=12))
def test_what_only_looks_like_it_stays(words: list[str]) -> None:
    text = " and ".join(words)
    assert Masked(text, KINDS).text == text


@given(st.lists(st.one_of(st.sampled_from(INNOCENT), WORDS, PLANTED.map(lambda one: one[1])), max_size=12), st.text())
def test_masking_twice_is_masking_once_whatever_the_text(parts: list[str], between: str) -> None:
    once = Masked(between.join(parts), KINDS).text
    assert Masked(once, KINDS).text == once


@given(PARTS, st.data())
def test_a_place_moves_with_its_text(parts: list[tuple[str, str]], data: st.DataObject) -> None:
    assume(parts)
    first = data.draw(st.integers(0, len(parts) - 1))
    last = data.draw(st.integers(first, len(parts) - 1))
    before, inside = joined([*parts[:first], ("", "")]), joined(parts[first : last + 1])
    # Within a mask, all of it counts.
    cut = data.draw(st.integers(0, len(parts[first][1]) - 1)) if parts[first][0] else 0
    masked = Masked(joined(parts), KINDS)
    start, end = masked.place(len(before) + cut, len(before) + len(inside))
    assert masked.text[start:end] == Masked(inside, KINDS).text
    assert masked.text[:start] == Masked(before, KINDS).text


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Mail a.b@c-d.org.", "Mail <EMAIL>."),
        ("http://10.0.0.1:80/", "http://<IP>:80/"),
        ("(fe80::1)", "(<IP>)"),
        ("::ffff:1.2.3.4", "<IP>"),
        ("api_key = 'abcdef0123456789'", "api_key = '<KEY>'"),
        ('"secret_key": "abcdef0123456789"', '"secret_key": "<KEY>"'),
        ("from -2147483648 to (2147483647), 1-2147483646", "from -2147483648 to (2147483647), 1-2147483646"),
        ("API_KEY=your-key-goes-here", "API_KEY=your-key-goes-here"),  # no digit
        ("-----BEGIN PRIVATE KEY----- stands first.", "-----BEGIN PRIVATE KEY----- stands first."),
    ],
)
def test_by_hand(text: str, masked: str) -> None:
    assert Masked(text, KINDS).text == masked


def test_only_what_is_asked_for() -> None:
    text = "a@b.com and 10.0.0.1 and +49 30 901820"
    assert Masked(text, ["ip"]).text == "a@b.com and <IP> and +49 30 901820"
    assert Masked(text, []).text == text


def test_an_answer_stands_in_its_context_after_masking_too(tmp_path: Path) -> None:
    """Answers that are masked, lie behind what is masked, or begin within it."""
    contexts = [f"Of {letters(n)}: write to {letters(n)}@example.org, or call the office on Monday." for n in range(60)]
    answers = ["{}@example.org", "office on Monday", "example.org, or call"]
    rows = []
    for n, context in enumerate(contexts):
        answer = answers[n % 3].format(letters(n))
        rows.append({"question": "What?", "context": context, "answer": answer, "number": n})
        rows[-1]["answers"] = {"text": [answer], "answer_start": [context.index(answer)]}
    write_jsonl(tmp_path / "raw/squad/a.jsonl", rows)
    write_jsonl(tmp_path / "raw/table/a.jsonl", rows)
    write(tmp_path / "raw/text/a.txt", "\n\n".join(f"Text {context}" for context in contexts))
    columns = {name: name for name in ("question", "context", "answer")}
    entries = [{"source": "squad", "reader": "squad"}, {"source": "table", "reader": "table", "columns": columns}]
    text = {"source": "text", "reader": "text", "split": "paragraph"}
    found = {"<EMAIL>", "office on Monday", "<EMAIL>, or call"}
    for entry in entries:
        report = run(
            tmp_path, {"pretraining": [text], "question_answering": [entry]}, mask_personal=["email"], test_share=0.3
        )
        folder = tmp_path / "prepared/question_answering"
        kept = [row for split in SPLITS for row in pq.read_table(folder / f"{split}.parquet").to_pylist()]
        assert len(kept) == 60
        assert {row["answer"] for row in kept} == found
        assert not any("@" in value for row in kept for value in row.values())
        for row in kept if entry["reader"] == "squad" else ():
            assert row["context"][int(row["answer_start"]) :].startswith(row["answer"])
        assert report["pretraining"]["text"]["masked"] == {"email": 60}
