"""Readers of one's own files through the whole stage: parallel texts, SQuAD, conversations, classes, language tags."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from preparing import letters, quarantine, records, run, write, write_jsonl

from lightning_modules.errors import PipelineError
from stages.dialogues import dialogue_rows, last_turns

NUMBERS = range(60)


def parallel(**options: str) -> dict[str, str]:
    return {"source": "english", "target": "german", "reader": "parallel", **options}


def write_pairs(root: Path, english: list[str], german: list[str]) -> None:
    write(root / "raw/english/a.txt", "\n".join(english) + "\n")
    write(root / "raw/german/b.txt", "\n".join(german))  # whether the last line ends is no difference


ENGLISH, GERMAN = [f"word {letters(n)}" for n in NUMBERS], [f"Wort {letters(n)}" for n in NUMBERS]


def test_lines_of_two_files_become_pairs_and_half_pairs_are_set_aside(tmp_path: Path) -> None:
    write_pairs(tmp_path, [*ENGLISH, "alone", "", "", "last"], [*GERMAN, " ", "allein", "", "letzte"])
    counts = run(tmp_path, {"translation": [parallel()]})["translation"]["english"]
    assert {(r["source"], r["target"]) for r in records(tmp_path, "translation")} == {
        *zip(ENGLISH, GERMAN, strict=True),
        ("last", "letzte"),
    }
    assert (counts["read"], counts["quarantined"]) == (63, 2)
    german, english = (str(tmp_path / f"raw/{name}") for name in ("german/b.txt", "english/a.txt"))
    assert quarantine(tmp_path) == [(61, f"the line is empty in {german}"), (62, f"the line is empty in {english}")]


@pytest.mark.parametrize(("more_english", "more_german", "counts"), [(3, 0, (63, 60)), (0, 1, (60, 61))])
def test_files_of_different_length_are_one_error_with_both_lengths(
    tmp_path: Path, more_english: int, more_german: int, counts: tuple[int, int]
) -> None:
    write_pairs(tmp_path, ENGLISH + ["more"] * more_english, GERMAN + ["mehr"] * more_german)
    names = ("english/a.txt", "german/b.txt")
    (few, shorter), (many, longer) = sorted(zip(counts, names, strict=True))
    with pytest.raises(PipelineError, match=f"{shorter} has {few} lines, .*{longer} {many}: line n of one must be"):
        run(tmp_path, {"translation": [parallel()]})


def test_folders_are_paired_by_the_order_of_names(tmp_path: Path) -> None:
    for number in (0, 30):
        write(tmp_path / f"raw/english/{number:02}.txt", "\n".join(ENGLISH[number : number + 30]))
        write(tmp_path / f"raw/german/{number:02}.txt", "\n".join(GERMAN[number : number + 30]))
    run(tmp_path, {"translation": [parallel()]})
    assert all(r["source"][4:] == r["target"][4:] for r in records(tmp_path, "translation"))
    (tmp_path / "raw/german/30.txt").unlink()
    with pytest.raises(PipelineError, match=r"english holds 2 text files, .*german 1: parallel files go in pairs"):
        run(tmp_path, {"translation": [parallel()]})


def test_a_pair_is_in_one_split_in_both_directions_and_for_pretraining(tmp_path: Path) -> None:
    write_pairs(tmp_path, [line.replace(" ", "  ") for line in ENGLISH], GERMAN)
    back = {"source": "german", "target": "english", "reader": "parallel", "to": "en"}
    texts = {"source": "english", "target": "german", "reader": "parallel_texts"}
    alone = {"source": "english", "reader": "text", "split": "line"}
    run(tmp_path, {"translation": [parallel(to="de"), back], "pretraining": [texts, alone]})
    found = records(tmp_path, "translation")
    assert {r["source"] for r in found} == {f"to de: {line}" for line in ENGLISH} | {
        f"to en: {line}" for line in GERMAN
    }
    assert {r["target"] for r in found} == {*ENGLISH, *GERMAN}
    splits: dict[str, set[str]] = {}
    for record in (*found, *records(tmp_path, "pretraining")):
        splits.setdefault(record.get("text", record.get("target", "")).split()[-1], set()).add(record["split"])
    assert len(splits) == 60
    assert all(len(of_pair) == 1 for of_pair in splits.values())
    assert {"word a\nWort a", "word a"} <= {r["text"] for r in records(tmp_path, "pretraining")}


def test_a_table_takes_a_language_tag_too(tmp_path: Path) -> None:
    rows = [{"en": e, "de": d} for e, d in zip(ENGLISH, GERMAN, strict=True)]
    write(tmp_path / "raw/mine/a.json", json.dumps(rows))
    entries: list[dict[str, Any]] = [
        {"source": "mine", "reader": "table", "columns": {"source": one, "target": two}, "to": two}
        for one, two in (("en", "de"), ("de", "en"))
    ]
    run(tmp_path, {"translation": entries})
    splits: dict[str, set[str]] = {}
    for record in records(tmp_path, "translation"):
        assert record["source"].startswith(("to de: word", "to en: Wort"))
        splits.setdefault(record["target"].split()[-1], set()).add(record["split"])
    assert all(len(of_pair) == 1 for of_pair in splits.values())


def test_emptied_sources_are_dropped_though_a_tag_goes_before_them(tmp_path: Path) -> None:
    write_pairs(tmp_path, [*ENGLISH, "<p></p>"], [*GERMAN, "nichts"])
    counts = run(tmp_path, {"translation": [parallel(to="de")]})["translation"]["english"]
    assert counts["dropped"]["empty"] == 1


TALK = [[f"Hi {letters(n)}!", "Hello, how are you?", "Fine.\nAnd  you?", f"Also {letters(n)}"] for n in NUMBERS]


def dialogues(**options: str | int) -> dict[str, list[dict[str, Any]]]:
    return {"dialogue": [{"source": "mine", "reader": "dialogues", "turns": "messages", "history": 3, **options}]}


def test_a_conversation_becomes_a_record_a_turn_in_one_split(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "a", "content": turn} for turn in turns]} for turns in TALK]
    odd: list[Any] = [{"messages": [{"content": "x"}]}, {"messages": [{"content": "x"}, {"role": "b"}]}, {}]
    odd += [{"messages": [{"content": "x"}, {"content": " "}]}, {"messages": "x"}]
    write_jsonl(tmp_path / "raw/mine/a.jsonl", rows + odd)
    report = run(tmp_path, dialogues(text="content"))
    found = [r for r in records(tmp_path, "dialogue") if r["reply"].startswith("Also")]
    assert {r["history"] for r in found} == {f"Hi {letters(n)}!\nHello, how are you?\nFine. And you?" for n in NUMBERS}
    assert report["dialogue"]["mine"]["read"] == 60 * 3 + 5
    assert [reason for _, reason in quarantine(tmp_path)] == [
        "column 'messages' is no list of at least two turns",
        "turn 2 has no 'content'",
        "no column 'messages'",
        "turn 2 is empty",
        "column 'messages' is no list of at least two turns",
    ]


def test_a_long_history_loses_whole_turns_at_its_beginning_and_that_is_counted(tmp_path: Path) -> None:
    talk = [[f"opening {letters(n)}", "x" * 30, f"question {letters(n)}", f"answer {letters(n)}"] for n in NUMBERS]
    write_jsonl(tmp_path / "raw/mine/a.jsonl", [{"messages": turns} for turns in talk])
    report = run(tmp_path, dialogues(), max_characters=45)
    last = [r for r in records(tmp_path, "dialogue") if r["reply"].startswith("answer")]
    assert {r["history"] for r in last} == {f"{'x' * 30}\nquestion {letters(n)}" for n in NUMBERS}
    assert report["dialogue"]["mine"]["trimmed"] == 60
    found = records(tmp_path, "dialogue")
    assert len({(r["group"], r["split"]) for r in found}) == len({r["group"] for r in found}) == 60


@given(turns=st.lists(st.text("ab c", min_size=1).filter(str.strip), min_size=2, max_size=8), most=st.integers(1, 30))
def test_what_is_left_of_a_history_is_its_end(turns: list[str], most: int) -> None:
    for record in dialogue_rows(turns, 100):
        history = record["history"]
        end = last_turns(history, most)
        assert len(end) <= most or end == history
        assert history.endswith(end)
        whole = ["\n".join(history.split("\n")[n:]) for n in range(len(history.split("\n")))]
        fitting = [part for part in whole if len(part) <= most]
        assert end == (fitting[0] if fitting else history[-most:])


def test_histories_and_labels_need_not_be_text(tmp_path: Path) -> None:
    rows = [{"said": [f"turn {letters(n)}", "so?"], "reply": f"yes {letters(n)}", "good": n % 2 == 0} for n in NUMBERS]
    (tmp_path / "raw/mine").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "raw/mine/a.parquet")
    table = {"source": "mine", "reader": "table"}
    columns = {"dialogue": {"history": "said", "reply": "reply"}, "classification": {"text": "reply", "label": "good"}}
    run(tmp_path, {task: [{**table, "columns": names}] for task, names in columns.items()})
    assert {r["history"] for r in records(tmp_path, "dialogue")} == {f"turn {letters(n)}\nso?" for n in NUMBERS}
    assert {(r["text"], r["label"]) for r in records(tmp_path, "classification")} == {
        (f"yes {letters(n)}", "true" if n % 2 == 0 else "false") for n in NUMBERS
    }


def test_turns_keep_their_lines_where_one_holds_html(tmp_path: Path) -> None:
    """In conversations, and in tables with a history of lines or of a list."""
    talk = [[f"Hi <b>{letters(n)}</b>!", "<p>So?</p><p>Tell  me</p>", "x < y &amp; z", "<br>", "Bye"] for n in NUMBERS]
    write_jsonl(tmp_path / "raw/mine/a.jsonl", [{"messages": turns} for turns in talk])
    told = [{"said": turns[:3] if n % 2 else "\n".join(turns[:3]), "so": "Yes."} for n, turns in enumerate(talk)]
    write_jsonl(tmp_path / "raw/told/a.jsonl", told)
    table = {"source": "told", "reader": "table", "columns": {"history": "said", "reply": "so"}}
    for entry in (dialogues(history=5)["dialogue"][0], table):
        run(tmp_path, {"dialogue": [entry]})
        found = {r["history"] for r in records(tmp_path, "dialogue")}
        assert found >= {f"Hi {letters(n)}!\nSo? Tell me\nx < y & z" for n in NUMBERS}
    assert len(found) == 60


def test_a_pair_of_lines_stays_two_lines_without_its_html(tmp_path: Path) -> None:
    write_pairs(
        tmp_path, [*ENGLISH, "<p>A <b>line</b></p>", "&lt;b&gt; is bold"], [*GERMAN, "<p>Eine</p><p>Zeile</p>", "fett"]
    )
    texts = {"source": "english", "target": "german", "reader": "parallel_texts"}
    run(tmp_path, {"pretraining": [texts], "translation": [parallel()]})
    found = {r["text"]: r["split"] for r in records(tmp_path, "pretraining")}
    assert {"A line\nEine Zeile", "<b> is bold\nfett"} <= set(found)
    for pair in records(tmp_path, "translation"):
        assert found["\n".join(" ".join(pair[side].split()) for side in ("source", "target"))] == pair["split"]


QUESTIONS = [
    {"q": f"What is {letters(n)}?", "c": f"It is word {letters(n)}.", "a": f"word {letters(n)}"} for n in NUMBERS
]
ASKED = {"source": "mine", "reader": "table", "columns": {"question": "q", "context": "c", "answer": "a"}}


def test_an_empty_answer_in_a_table_says_that_there_is_none(tmp_path: Path) -> None:
    without = [{**QUESTIONS[n], "q": f"Who is {letters(n)}?", "a": " " * (n % 2)} for n in range(8)]
    bad = [{**QUESTIONS[0], "a": None}, {**QUESTIONS[0], "q": ""}, {"q": "So?", "c": "It is."}]
    write_jsonl(tmp_path / "raw/mine/a.jsonl", [*QUESTIONS, *without, *bad])
    lines = ["q,c,a", "Where?,It is here.,here", "Whence?,It is here.,", 'Why?,It is here.,""']
    write(tmp_path / "raw/mine/b.csv", "\n".join(lines) + "\n")
    counts = run(tmp_path, {"question_answering": [ASKED]})["question_answering"]["mine"]
    answers = {r["question"]: r["answer"] for r in records(tmp_path, "question_answering")}
    none = {*(row["q"] for row in without), "Whence?", "Why?"}
    assert {question for question, answer in answers.items() if not answer} == none
    assert len(answers) == 60 + 8 + 3
    assert counts["quarantined"] == 3
    assert quarantine(tmp_path) == [
        (69, "column 'a' is empty"),
        (70, "column 'q' is empty"),
        (71, "no column 'a'"),
    ]


@pytest.mark.parametrize(
    ("task", "fields"), [("translation", ("source", "target")), ("classification", ("text", "label"))]
)
def test_other_tasks_need_what_they_write(tmp_path: Path, task: str, fields: tuple[str, str]) -> None:
    rows = [dict(zip(fields, (f"word {letters(n)}", "yes"), strict=True)) for n in NUMBERS]
    write_jsonl(tmp_path / "raw/mine/a.jsonl", [*rows, {fields[0]: "word", fields[1]: ""}])
    run(tmp_path, {task: [{"source": "mine", "reader": "table", "columns": {name: name for name in fields}}]})
    assert quarantine(tmp_path) == [(61, f"column {fields[1]!r} is empty")]


def test_a_row_without_its_group_is_set_aside(tmp_path: Path) -> None:
    lines = [f"word {letters(n)},{n % 20}" for n in NUMBERS]
    write(tmp_path / "raw/mine/a.csv", "\n".join(["body,site", *lines, "lost,", "lost too, ", ""]))
    rows = [{"body": "also lost", "site": None}, {"body": "lost as well"}, {"body": "found", "site": 0}]
    write_jsonl(tmp_path / "raw/mine/b.jsonl", rows)
    run(
        tmp_path, {"pretraining": [{"source": "mine", "reader": "table", "columns": {"text": "body"}, "group": "site"}]}
    )
    empty = "column 'site' is empty"
    assert quarantine(tmp_path) == [(62, empty), (63, empty), (1, empty), (2, "no column 'site'")]
    assert {r["group"] for r in records(tmp_path, "pretraining")} == {str(n) for n in range(20)}


def test_what_is_missing_of_a_nested_value_is_named_whole(tmp_path: Path) -> None:
    rows: list[Any] = [{"translation": {"en": e, "de": d}} for e, d in zip(ENGLISH, GERMAN, strict=True)]
    write_jsonl(tmp_path / "raw/mine/a.jsonl", [*rows, {"translation": {"de": "Wort"}}])
    columns = {"source": "translation.en", "target": "translation.de"}
    run(tmp_path, {"translation": [{"source": "mine", "reader": "table", "columns": columns}]})
    assert quarantine(tmp_path) == [(61, "no column 'translation.en'")]


def test_csv_that_is_not_utf8_costs_its_own_rows(tmp_path: Path) -> None:
    lines = [f"word {letters(n)},{n}".encode() for n in NUMBERS]
    write(tmp_path / "raw/mine/a.csv", "")
    (tmp_path / "raw/mine/a.csv").write_bytes(
        b"\n".join([b"body,n", *lines[:9], b"caf\xe9,1", b"fine,\xe9", *lines[9:]])
    )
    run(tmp_path, {"pretraining": [{"source": "mine", "reader": "table", "columns": {"text": "body"}}]})
    assert quarantine(tmp_path) == [(11, "column 'body' is not UTF-8 (character 4)")]
    assert len(records(tmp_path, "pretraining")) == 61


def test_files_that_no_reader_of_a_source_reads_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pairs(tmp_path, ENGLISH, GERMAN)
    write(tmp_path / "raw/german/notes.md", "not read")
    write_jsonl(tmp_path / "raw/english/a.jsonl", [{"body": f"text {letters(n)}"} for n in NUMBERS])
    table = {"source": "english", "reader": "table", "columns": {"text": "body"}}
    run(tmp_path, {"translation": [parallel()], "pretraining": [table]})
    german = f"source german: left out 1 of 2 files in {tmp_path}/raw/german, being none of .txt: notes.md\n"
    assert capsys.readouterr().out == german
    run(tmp_path, {"translation": [parallel()]})
    english = f"source english: left out 1 of 2 files in {tmp_path}/raw/english, being none of .txt: a.jsonl\n"
    assert capsys.readouterr().out == english + german
