"""SQuAD's format: answers stay where they stand in their context, questions without one stay, articles in one split."""

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
from stages.sources import Bad, Row
from stages.squad import squad_rows
from stages.text import normalise

ENTRY = {"question_answering": [{"source": "mine", "reader": "squad"}]}


def question(context: str, start: int, end: int, **more: Any) -> dict[str, Any]:
    answer = {"text": context[start:end], "answer_start": start}
    return {"question": f"What stands at {letters(start)} {letters(end)}?", "answers": [answer], **more}


def squad(*articles: list[tuple[str, list[dict[str, Any]]]]) -> str:
    """An article is a list of (context, questions)."""
    data = [
        {"title": f"title {n}", "paragraphs": [{"context": context, "qas": qas} for context, qas in article]}
        for n, article in enumerate(articles)
    ]
    return json.dumps({"version": "v2.0", "data": data})


def articles(count: int) -> list[list[tuple[str, list[dict[str, Any]]]]]:
    """The word "here" stands twice in each context, and the second is meant."""
    made = []
    for n in range(count):
        context = f"here \u00a0is  one {letters(n)},\r\n\r\nand here another."
        place = context.rindex("here")
        nothing = {"question": f"And elsewhere {letters(n)}?", "answers": [], "is_impossible": True}
        made.append([(context, [question(context, place, place + 12, is_impossible=False), nothing])])
    return made


def test_answers_stand_where_they_stood_and_none_is_none(tmp_path: Path) -> None:
    write(tmp_path / "raw/mine/train-v2.0.json", squad(*articles(40)))
    counts = run(tmp_path, ENTRY)["question_answering"]["mine"]
    found = records(tmp_path, "question_answering")
    assert (counts["read"], len(found)) == (80, 80)
    answered = [r for r in found if r["answer"]]
    assert len(answered) == 40
    for record in answered:
        start = int(record["answer_start"])
        assert record["context"][start : start + len(record["answer"])] == record["answer"] == "here another"
        assert start == record["context"].rindex("here")
    assert {r["answer_start"] for r in found if not r["answer"]} == {""}
    splits: dict[str, set[str]] = {}
    for record in found:
        splits.setdefault(record["group"], set()).add(record["split"])
    assert len(splits) == 40
    assert all(len(of_article) == 1 for of_article in splits.values())


def test_of_several_answers_the_first_is_learned_and_all_that_differ_are_kept(tmp_path: Path) -> None:
    rows, context = [], "Ada, Countess of  Lovelace, wrote to a@b.org about the engine of Charles Babbage."
    answers = [["Ada", "Ada", "Countess of  Lovelace", "", "Ada"], ["to a@b.org"], ["the engine", "a@b.org", "engine"]]
    for number in range(60):
        texts = answers[number % 3]
        starts = [context.index(text) for text in texts]
        found = {"question": f"What of {letters(number)}?", "context": f"{context} {letters(number)}"}
        rows.append(found | {"answers": {"text": texts, "answer_start": starts}, "number": number})
    write_jsonl(tmp_path / "raw/mine/a.jsonl", rows)
    for masked, address in ((["email"], "<EMAIL>"), ([], "a@b.org")):
        run(tmp_path, ENTRY, mask_personal=masked)
        kept = records(tmp_path, "question_answering")
        assert {(row["answer"], row["other_answers"]) for row in kept} == {
            ("Ada", '["Countess of Lovelace"]'),
            (f"to {address}", ""),
            ("the engine", f'["{address}", "engine"]'),
        }
        for row in kept:
            assert row["context"][int(row["answer_start"]) :].startswith(row["answer"])


def test_what_is_no_question_is_set_aside_with_its_number(tmp_path: Path) -> None:
    context = "Some words stand here."
    odd = [
        {"question": "Where?", "answers": []},  # as in version 1.1, where each has one
        {"question": " ", "answers": []},
        {"answers": []},
        {"question": "Where?", "answers": [{"text": "elsewhere", "answer_start": 3}], "is_impossible": False},
        {"question": "Where?", "answers": [{"text": "words"}]},
        {"question": "Where?", "answers": [{"text": 5, "answer_start": 0}]},
        {"question": "\ud800?", "answers": []},
        {"question": "Where?", "answers": [{"text": "words", "answer_start": 5}, {"text": 5, "answer_start": 0}]},
    ]
    write(tmp_path / "raw/mine/a.json", squad(*articles(30), [(context, odd)]))
    run(tmp_path, ENTRY)
    reasons = dict(quarantine(tmp_path))
    assert list(reasons) == list(range(61, 69))
    assert reasons[61] == "it has no answer, and is_impossible does not say that there is none"
    assert reasons[62] == "its question is empty"
    assert reasons[64] == "its answer does not stand in its context"
    assert all(reasons[n].startswith("not a question in the format of SQuAD") for n in (63, 65, 66, 68))
    assert reasons[67].startswith("its question is not UTF-8")


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_tables_as_the_hub_has_them_give_the_same(tmp_path: Path, suffix: str) -> None:
    rows = []
    for n, [(context, qas)] in enumerate(articles(40)):
        for qa in qas:
            texts, starts = ([answer[key] for answer in qa["answers"]] for key in ("text", "answer_start"))
            answers = {"text": texts, "answer_start": starts}
            rows.append({"title": f"title {n}", "context": context, "question": qa["question"], "answers": answers})
    path = tmp_path / "raw/mine" / f"a{suffix}"
    write_jsonl(path, rows)
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    write(tmp_path / "other.json", squad(*articles(40)))
    from_table = [item.values for item in squad_rows(path, "title") if isinstance(item, Row)]
    assert from_table == [item.values for item in squad_rows(tmp_path / "other.json", None) if isinstance(item, Row)]
    grouped = [item.values["group"] for item in squad_rows(path, None) if isinstance(item, Row)]
    assert len(set(grouped)) == 40
    assert grouped[0::2] == grouped[1::2], "questions on a context go together"


@pytest.mark.parametrize("text", ["[]", "{}", '{"data": [{"paragraphs": 3}]}', "{", '{"data": [7]}'])
def test_a_file_that_is_none_is_one_error(tmp_path: Path, text: str) -> None:
    write(tmp_path / "a.json", text)
    with pytest.raises(PipelineError, match=r"a\.json is not (SQuAD's )?json \("):
        list(squad_rows(tmp_path / "a.json", None))


@given(data=st.data(), context=st.text("ab \n\t\u00a0\u0301e\u200b", min_size=1, max_size=60))
def test_whatever_cleaning_moves_the_answer_is_found_if_it_still_stands_there(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, context: str
) -> None:
    start = data.draw(st.integers(0, len(context) - 1))
    end = data.draw(st.integers(start + 1, len(context)))
    path = tmp_path_factory.getbasetemp() / "squad.json"
    path.write_text(squad([(context, [question(context, start, end)])]))
    [item] = squad_rows(path, None)
    if isinstance(item, Bad):
        clean = normalise(context)
        answer = normalise(context[start:end])
        assert not clean or not answer or answer not in clean
        return
    place, answer = int(item.values["answer_start"]), item.values["answer"]
    found = normalise(item.values["context"])
    assert found == item.values["context"], "what prepare does to it must not move the answer"
    assert found[place : place + len(answer)] == answer


def test_the_group_of_a_table_may_be_nested_and_a_row_without_one_is_set_aside(tmp_path: Path) -> None:
    rows = []
    for n, about in enumerate([{"title": " one "}, {"title": ""}, {"title": None}, {"title": "one"}]):
        answers = {"text": [letters(n)], "answer_start": [8]}
        rows.append({"question": "Who is it?", "context": f"Here is {letters(n)}.", "answers": answers, "about": about})
    write_jsonl(tmp_path / "a.jsonl", rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.parquet"):
        one, *empty, two = squad_rows(tmp_path / name, "about.title")
        assert [item.values["group"] for item in (one, two) if isinstance(item, Row)] == ["one", "one"]
        assert empty == [Bad(number, "column 'about.title' is empty") for number in (2, 3)]
    assert list(squad_rows(tmp_path / "a.jsonl", "about.titel")) == [
        Bad(number, "no column 'about.titel'") for number in (1, 2, 3, 4)
    ]
    with pytest.raises(PipelineError, match=r"a.parquet has no column 'abuot.title'"):
        list(squad_rows(tmp_path / "a.parquet", "abuot.title"))


def test_a_title_and_an_answer_that_are_no_text_cost_their_own_records(tmp_path: Path) -> None:
    context = "Some words stand here."
    two = question(context, 5, 10)
    two["answers"].append({"text": "\ud800", "answer_start": 0})
    whole = json.loads(squad(*articles(30), [(context, [two])], [(context, [question(context, 5, 10)])]))
    whole["data"][-1]["title"] = "\ud800"
    write(tmp_path / "raw/mine/a.json", json.dumps(whole))
    run(tmp_path, ENTRY)
    told = "is not UTF-8 (character 1)"
    assert dict(quarantine(tmp_path)) == {61: f"an answer of it {told}", 62: f"its title {told}"}
