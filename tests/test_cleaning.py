"""Cleaning one file, also a second time; and all filters together, which account for every record."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from preparing import letters, records, run, write_jsonl
from ruamel.yaml import YAML
from test_quality import page, sentence

from stages.cleaning import FileJob, clean_file
from stages.params_data import Table
from stages.params_schema import Prepare
from stages.splits import SPLITS

ROOT = Path(__file__).parents[1]
TABLE = {"source": "web", "reader": "table", "columns": {"text": "body"}}
BOOKS = TABLE | {"source": "books"}
PAIRS = {"source": "pairs", "reader": "table", "columns": {"source": "en", "target": "de"}}
EVERYTHING: dict[str, Any] = {
    "languages": ["en"],
    "quality": ["c4", "gopher"],
    "mask_personal": ["email", "phone", "ip", "key"],
    "near_duplicates": 0.7,
    "decontaminate": True,
    "weights": {"books": 2.5, "web": 0.8},
    "max_characters": 1500,
}
GERMAN = "Das Wetter ist heute schön, und wir gehen mit den Kindern in den Garten. "


def pages(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return ["\n".join(sentence(draw) for _ in range(draw.randint(8, 14))) for _ in range(count)]


def write_all(root: Path) -> None:
    """Something for every filter to drop."""
    good, pairs = pages(80, 1), pages(40, 2)
    web = [
        *good,
        *(text.replace("river", "lake", 1) for text in good[:20]),
        *good[:5],
        *(f"It is told in the village.\n{text}" for text in pairs),
    ]
    web += [f"{text} Write to {letters(n)}@example.org, at once." for n, text in enumerate(pages(10, 3))]
    web += [GERMAN * 8, f"Home\nShop\n{page()}", "<p></p>", "x", "12 34 56", page() + "\nLorem ipsum is here."]
    web += [" ".join(pages(4, 4)), "The end of it is near. " * 60, "Short and sweet, of course. It has no fifth one."]
    write_jsonl(root / "raw/web/a.jsonl", [*({"body": text} for text in web), "{", {"body": 7}])
    write_jsonl(root / "raw/web/b.jsonl", [{"body": text} for text in pages(30, 5)])
    write_jsonl(root / "raw/books/a.jsonl", [{"body": text} for text in pages(60, 6)])
    rows = [{"en": text, "de": f"Ruf +49 30 9018{n:02d} an"} for n, text in enumerate(pairs)]
    write_jsonl(root / "raw/pairs/a.jsonl", rows)


def test_all_filters_account_for_every_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.prepare.WORTH", 1)  # so that little text has workers, too
    write_all(tmp_path)
    data = {"pretraining": [TABLE, BOOKS], "translation": [PAIRS]}
    found = []
    for workers in (1, 2):
        report = run(tmp_path, data, workers=workers, **EVERYTHING)
        files = [path for path in sorted(tmp_path.glob("prepared/**/*")) if path.is_file()]
        found.append({path.name: path.read_bytes() for path in [*files, tmp_path / "dropped.jsonl"]} | report)
    assert found[0] == found[1]
    for purpose, sources in report.items():
        kept = records(tmp_path, purpose)
        for source, counts in sources.items():
            gone = counts["quarantined"] + sum(counts["dropped"].values()) + counts["duplicates"]
            assert counts["read"] + counts["cut"] + counts["repeated"] == gone + sum(counts["kept"].values())
            of_it = [record for record in kept if record["origin"] == source]
            assert counts["kept"] == {name: sum(one["split"] == name for one in of_it) for name in SPLITS}
    web, books = report["pretraining"]["web"], report["pretraining"]["books"]
    expected = {"languages", "c4_lorem_ipsum", "c4_sentences", "empty", "min_characters", "min_letter_share"}
    expected |= {"near_duplicates", "decontaminate", "weights"}
    assert {name for name, number in web["dropped"].items() if number} >= expected
    assert web["lines_removed"] == {"c4_line_end": 2}
    assert web["masked"] == {"email": 10}
    assert report["translation"]["pairs"]["masked"]["phone"] == 40
    assert web["cut"] > 0
    ids = [record["id"] for record in records(tmp_path, "pretraining") if record["origin"] == "books"]
    assert books["repeated"] == len(ids) - len(set(ids)) > 0
    samples = [json.loads(line) for line in (tmp_path / "dropped.jsonl").read_text().splitlines()]
    for name, number in web["dropped"].items():
        of_filter = [one for one in samples if (one["source"], one["filter"]) == ("web", name)]
        assert len(of_filter) == (0 if name == "empty" else min(5, number))
    assert not any("@" in path.read_text(errors="replace") for path in tmp_path.glob("prepared/**/*.jsonl"))
    assert not any("@" in value for record in records(tmp_path, "pretraining") for value in record.values())
    assert not any("@" in line["text"] for line in samples)


@pytest.mark.parametrize("left", ["nothing", "all of a first run", "half a first run"])
def test_a_second_try_does_what_the_first_would_have_done(tmp_path: Path, left: str) -> None:
    """A worker may die at any moment, and its file is then cleaned again, elsewhere."""
    write_all(tmp_path)
    values = YAML(typ="safe").load((ROOT / "params.yaml").read_text())["prepare"]
    entry, limits = Table.model_validate(TABLE), Prepare.model_validate(values | EVERYTHING)
    file = tmp_path / "raw/web/a.jsonl"

    def outcome(folder: Path) -> tuple[Any, ...]:
        counts = clean_file(FileJob("pretraining", entry, (file,), folder, limits))
        written = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
        return written, counts.read, counts.dropped, counts.samples.lines(), [path.name for path in counts.runs]

    expected = outcome(tmp_path / "other")
    if left != "nothing":
        assert outcome(tmp_path / "job") == expected
        (tmp_path / "job/00007.arrow").write_bytes(b"from a run of other data")
    if left == "half a first run":
        (tmp_path / "job/00000.arrow").write_bytes(b"half")
    assert outcome(tmp_path / "job") == expected


NUMBERS = range(40)
SUMMARIES = {"source": "mine", "reader": "table", "columns": {"document": "long", "summary": "short"}}
QUESTIONS = {"source": "mine", "reader": "table", "columns": {"question": "q", "context": "c", "answer": "a"}}


def test_of_a_long_document_the_beginning_stays_and_that_is_counted(tmp_path: Path) -> None:
    rows = [{"long": f"about {letters(n)}\nmore of it{' and on' * (n % 2) * 30}", "short": "so"} for n in NUMBERS]
    write_jsonl(tmp_path / "raw/mine/a.jsonl", rows)
    counts = run(tmp_path, {"summarization": [SUMMARIES]}, max_characters=50)["summarization"]["mine"]
    found = {record["document"] for record in records(tmp_path, "summarization")}
    whole = {row["long"] for row in rows}
    assert {text for text in found if len(text) < 40} == {text for text in whole if len(text) <= 50}
    for text in found - whole:
        [of] = [one for one in whole if one.startswith(text)]
        assert of[len(text)] == " "
        assert 45 < len(text) <= 50
    assert len(found) == len(whole) == 40
    assert (counts["trimmed"], counts["dropped"]["max_characters"]) == (20, 0)


@pytest.mark.parametrize("reader", ["squad", "table"])
def test_a_context_is_cut_only_behind_its_answer(tmp_path: Path, reader: str) -> None:
    """Wherever the data says that it stands, or where it stands first; no answer is none in a part, either."""
    rows = list[dict[str, Any]]()
    for n in NUMBERS:
        answer, tail = f"word {letters(n)}", " and so on" * 9
        for kind, context in (("near", f"Here is {answer},{tail}"), ("far", f"Here is{tail}, {answer}.")):
            start = context.index(answer)
            given = {"text": [answer], "answer_start": [start]} if reader == "squad" else answer
            rows.append({"question": f"Which is {kind} {letters(n)}?", "context": context, "answers": given})
    none: Any = {"text": [], "answer_start": []} if reader == "squad" else ""
    rows.append({"question": "Who is it?", "context": "It is not told here. " * 9, "answers": none})
    write_jsonl(tmp_path / "raw/mine/a.jsonl", rows)
    columns = {"columns": {"question": "question", "context": "context", "answer": "answers"}}
    entry = {"source": "mine", "reader": reader} | (columns if reader == "table" else {})
    counts = run(tmp_path, {"question_answering": [entry]}, max_characters=90)["question_answering"]["mine"]
    found = records(tmp_path, "question_answering")
    assert {r["question"] for r in found} == {f"Which is near {letters(n)}?" for n in NUMBERS} | {"Who is it?"}
    assert all(len(f"{r['question']}\n{r['context']}") <= 90 for r in found)
    assert all(r["context"].find(r["answer"]) == (8 if r["answer"] else 0) for r in found)
    assert {r["answer_start"] for r in found} == ({"8", ""} if reader == "squad" else {""})
    assert (counts["trimmed"], counts["dropped"]["max_characters"]) == (41, 40)


def test_a_long_source_of_a_translation_is_dropped_and_so_is_what_leaves_no_room(tmp_path: Path) -> None:
    rows = [{"en": f"word {letters(n)} " * (1 + 9 * (n % 2)), "de": "Wort"} for n in NUMBERS]
    write_jsonl(tmp_path / "raw/pairs/a.jsonl", rows)
    counts = run(tmp_path, {"translation": [PAIRS]}, max_characters=40)["translation"]["pairs"]
    assert (counts["trimmed"], counts["dropped"]["max_characters"]) == (0, 20)
    asked = [{"q": f"What is {letters(n)}? " * (1 + 9 * (n % 2)), "c": "It is so.", "a": ""} for n in NUMBERS]
    write_jsonl(tmp_path / "raw/mine/a.jsonl", asked)
    counts = run(tmp_path, {"question_answering": [QUESTIONS]}, max_characters=40)["question_answering"]["mine"]
    assert (counts["trimmed"], counts["dropped"]["max_characters"]) == (0, 20)


def test_a_long_text_is_judged_whole_though_its_beginning_has_no_letters(tmp_path: Path) -> None:
    texts = [*pages(40, 7), "12 34 56 " * 200 + GERMAN * 80]
    write_jsonl(tmp_path / "raw/web/a.jsonl", [{"body": text} for text in texts])
    counts = run(tmp_path, {"pretraining": [TABLE]}, languages=["en"], max_characters=1500)["pretraining"]["web"]
    assert counts["dropped"]["languages"] == 1
    assert not any("Wetter" in record["text"] for record in records(tmp_path, "pretraining"))
