"""Preparing: real files in, clean parquet out; duplicates, groups, quarantine; the same bytes whatever the workers."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from preparing import letters, run, write_jsonl

from lightning_modules.errors import PipelineError
from stages.params_data import TextFiles
from stages.readers import READERS
from stages.sources import Bad, Row
from stages.splits import SPLITS, Runs, split_of, write_splits

ROOT = Path(__file__).parent.parent
TABLE = {"source": "mine", "reader": "table", "columns": {"text": "body"}}


def records(tmp_path: Path, purpose: str = "pretraining") -> dict[str, list[dict[str, str]]]:
    return {split: pq.read_table(tmp_path / "prepared" / purpose / f"{split}.parquet").to_pylist() for split in SPLITS}


def texts(tmp_path: Path) -> set[str]:
    return {record["text"] for of_split in records(tmp_path).values() for record in of_split}


def test_every_record_is_accounted_for(tmp_path: Path) -> None:
    good = [{"body": f"<p>text <b>{letters(n)}</b></p>"} for n in range(60)]
    odd = [{"body": "text a"}, {"body": "x"}, {"body": "1234567"}, {"body": "<p></p>"}, {"body": "word " * 30}]
    bad = ["{", {"other": "x"}, {"body": 7}, {"body": None}, {"body": " "}, "[]", '{"body": "\\ud800"}']
    write_jsonl(tmp_path / "raw/mine/a.jsonl", [*good, *odd, *bad])
    counts = run(tmp_path, {"pretraining": [TABLE]}, max_characters=50)["pretraining"]["mine"]
    assert counts["read"] == 72
    assert counts["quarantined"] == 7
    assert counts["dropped"] == {"empty": 1, "min_characters": 1, "max_characters": 0, "min_letter_share": 1}
    assert counts["cut"] == 2  # 149 characters in pieces of 50
    assert counts["duplicates"] >= 2  # "text a", and the pieces of the repeated word
    assert 7 + 3 + counts["duplicates"] + sum(counts["kept"].values()) == 72 + 2
    kept = texts(tmp_path)
    assert {f"text {letters(n)}" for n in range(60)} <= kept
    assert counts["characters"] == sum(map(len, kept))
    quarantine = [json.loads(line) for line in (tmp_path / "prepared/quarantine.jsonl").read_text().splitlines()]
    assert [entry["line"] for entry in quarantine] == [66, 67, 68, 69, 70, 71, 72]
    assert quarantine[1] == {
        "file": (tmp_path / "raw/mine/a.jsonl").as_posix(),
        "line": 67,
        "reason": "no column 'body'",
        "purpose": "pretraining",
    }
    assert quarantine[2]["reason"] == "column 'body' is of type int, not text"


@pytest.mark.parametrize(
    ("split", "expected"),
    [("line", {"one", "two", "three"}), ("paragraph", {"one\ntwo", "three"}), ("file", {"one\ntwo\n\nthree"})],
)
def test_plain_text_by_line_paragraph_and_file(tmp_path: Path, split: str, expected: set[str]) -> None:
    entry = {"source": "mine", "reader": "text", "split": split}
    (tmp_path / "raw/mine").mkdir(parents=True)
    (tmp_path / "raw/mine/a.txt").write_bytes("\ufeffone\r\ntwo\r\n  \r\nthree\r\n".encode())
    write_jsonl(tmp_path / "raw/rest/a.jsonl", [{"body": f"rest {letters(n)}"} for n in range(30)])
    run(tmp_path, {"pretraining": [entry, {**TABLE, "source": "rest"}]})
    assert {text for text in texts(tmp_path) if not text.startswith("rest")} == expected


def test_undecodable_bytes_cost_their_record_only(tmp_path: Path) -> None:
    (tmp_path / "raw/mine").mkdir(parents=True)
    lines = [f"line {letters(n)}".encode() for n in range(40)]
    (tmp_path / "raw/mine/a.txt").write_bytes(b"\n".join([*lines[:20], b"caf\xe9", *lines[20:]]))
    run(tmp_path, {"pretraining": [{"source": "mine", "reader": "text", "split": "line"}]})
    assert texts(tmp_path) == {line.decode() for line in lines}
    (quarantined,) = (tmp_path / "prepared/quarantine.jsonl").read_text().splitlines()
    assert json.loads(quarantined)["line"] == 21
    assert json.loads(quarantined)["reason"] == "not UTF-8 (byte 4 of the line)"


LINES = st.one_of(
    st.sampled_from([b"", b" ", b"one two", "äöü € 漢字".encode(), b"caf\xe9 au lait", b"\t"]),
    st.text("ab ä漢", max_size=30).map(str.encode),
)


@given(
    st.lists(st.tuples(LINES, st.sampled_from([b"\n", b"\r\n"])), max_size=20),
    st.booleans(),
    st.sampled_from(["line", "paragraph", "file"]),
    st.integers(4, 40),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_long_documents_come_in_parts_that_hold_all_of_it(
    tmp_path: Path, lines: list[tuple[bytes, bytes]], ended: bool, split: str, most: int
) -> None:
    """With a small bound on what is held, documents come in parts: of one group, and whole when joined."""
    path = tmp_path / "a.txt"
    content = b"".join(line + end for line, end in lines)
    path.write_bytes(content if ended else content.rstrip(b"\r\n"))
    entry = TextFiles(source="mine", reader="text", split=split)  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patch:
        whole = list(READERS["text"].read(entry, path))
        patch.setattr("stages.readers._LONGEST", most)
        parts = list(READERS["text"].read(entry, path))
    rows = [part.values for part in parts if isinstance(part, Row)]
    assert all(len(row["text"].encode()) <= 2 * most for row in rows)
    if not any(isinstance(item, Bad) for item in whole):
        left = iter(rows)
        for document in (item.values["text"] for item in whole if isinstance(item, Row)):
            of_it = list[dict[str, str]]()
            while "".join(row["text"] for row in of_it).split() != document.split():
                of_it.append(next(left))
            assert len(of_it) == 1 or len({row["group"] for row in of_it} - {""}) == 1
        assert not list(left)
    bad, bad_in_parts = ({item.line for item in items if isinstance(item, Bad)} for items in (whole, parts))
    assert bool(bad) == bool(bad_in_parts)
    assert bad <= bad_in_parts or split != "line"


def test_duplicates_go_by_the_source_side_before_the_split(tmp_path: Path) -> None:
    pairs = [{"en": f"word {letters(n % 40)}", "de": f"Wort {letters(n)}", "file": f"g{n}"} for n in range(120)]
    write_jsonl(tmp_path / "raw/mine/a.jsonl", pairs)
    write_jsonl(tmp_path / "raw/rest/a.jsonl", [{"body": f"rest {letters(n)}"} for n in range(30)])
    pair_entry = {"source": "mine", "reader": "table", "columns": {"source": "en", "target": "de"}, "group": "file"}
    report = run(tmp_path, {"translation": [pair_entry], "pretraining": [{**TABLE, "source": "rest"}]})
    assert report["translation"]["mine"]["duplicates"] == 80
    of_split = records(tmp_path, "translation")
    sources = [record["source"] for split in SPLITS for record in of_split[split]]
    assert len(sources) == len(set(sources)) == 40
    for split in SPLITS:
        for record in of_split[split]:  # the first of the three whose split comes first
            copies = [n for n in range(120) if record["source"] == f"word {letters(n % 40)}"]
            first = min(copies, key=lambda n: SPLITS.index(split_of(f"g{n}", 0.25, 0.25)))
            assert (record["target"], record["group"]) == (f"Wort {letters(first)}", f"g{first}")
            assert split == split_of(f"g{first}", 0.25, 0.25)


def test_a_file_that_sorts_earlier_moves_no_record_from_training_to_test(tmp_path: Path) -> None:
    train, test = (next(g for g in map(str, range(99)) if split_of(g, 0.25, 0.25) == s) for s in ("train", "test"))
    entry = {**TABLE, "group": "site"}
    rows = [{"body": f"text {letters(n)}", "site": f"site {n}"} for n in range(30)]
    write_jsonl(tmp_path / "raw/mine/b.jsonl", [*rows, {"body": "seen before", "site": train}])
    run(tmp_path, {"pretraining": [entry]})
    assert "seen before" in {record["text"] for record in records(tmp_path)["train"]}
    write_jsonl(tmp_path / "raw/mine/a.jsonl", [{"body": "seen before", "site": test}])
    report = run(tmp_path, {"pretraining": [entry]})
    assert "seen before" in {record["text"] for record in records(tmp_path)["train"]}
    assert report["pretraining"]["mine"]["duplicates"] == 1


def test_a_group_is_in_one_split_for_every_purpose_and_stays_there_with_more_data(tmp_path: Path) -> None:
    rows = [{"body": f"text {letters(n)}", "file": f"group {n % 30}"} for n in range(300)]
    pairs = [{"body": f"pair {letters(n)}", "de": "Ja", "file": f"group {n % 30}"} for n in range(300)]
    pair_entry = {"source": "pairs", "reader": "table", "columns": {"source": "body", "target": "de"}, "group": "file"}
    data = {"pretraining": [{**TABLE, "group": "file"}], "translation": [pair_entry]}

    def places() -> tuple[dict[str, set[str]], dict[str, str]]:
        groups: dict[str, set[str]] = {}
        splits: dict[str, str] = {}
        for purpose in data:
            for split, of_split in records(tmp_path, purpose).items():
                for record in of_split:
                    groups.setdefault(record["group"], set()).add(split)
                    splits[record["id"]] = split
        return groups, splits

    write_jsonl(tmp_path / "raw/mine/a.jsonl", rows[:200])
    write_jsonl(tmp_path / "raw/pairs/a.jsonl", pairs[:200])
    run(tmp_path, data)
    groups, before = places()
    assert len(groups) == 30
    assert all(len(splits) == 1 for splits in groups.values())
    write_jsonl(tmp_path / "raw/mine/a.jsonl", rows)
    write_jsonl(tmp_path / "raw/pairs/a.jsonl", pairs)
    run(tmp_path, data)
    _, after = places()
    assert len(after) == 600
    assert before.items() <= after.items()


def test_the_shares_are_about_what_is_asked_and_one_does_not_move_the_other() -> None:
    groups = [f"group {n}" for n in range(4000)]
    splits = [split_of(group, 0.1, 0.2) for group in groups]
    assert splits.count("validation") / 4000 == pytest.approx(0.1, abs=0.02)
    assert splits.count("test") / 4000 == pytest.approx(0.2, abs=0.02)
    larger = [split_of(group, 0.3, 0.2) for group in groups]
    assert [split == "test" for split in splits] == [split == "test" for split in larger]


def test_the_same_bytes_whatever_the_workers_and_the_hash_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.prepare.WORTH", 1)  # so that little text has workers, too
    for name in ("a", "b", "c"):
        write_jsonl(tmp_path / f"raw/mine/{name}.jsonl", [{"body": f"{name} {letters(n % 500)}"} for n in range(900)])
    found = []
    for workers in (1, 2):
        run(tmp_path, {"pretraining": [TABLE]}, workers=workers)
        files = [path for path in sorted((tmp_path / "prepared").rglob("*")) if path.is_file()]
        found.append([(path.name, path.read_bytes()) for path in files])
    assert found[0] == found[1]
    assert [name for name, _ in found[0]] == ["test.parquet", "train.parquet", "validation.parquet", "quarantine.jsonl"]
    ids = [record["id"] for record in records(tmp_path)["train"]]
    assert ids == sorted(ids)


def test_sorted_runs_merge_as_one_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many small runs, as large data makes them, give the same files as one."""
    columns = ["id", "group", "origin", "text"]
    rows = [(f"{n * 7919 % 3001:016x}", f"g{n}", "mine", f"text {n}") for n in range(6000)]
    outcomes = []
    for characters in (10**9, 2000):
        monkeypatch.setattr("stages.splits._RUN_CHARACTERS", characters)
        folder = tmp_path / str(characters)
        runs = Runs(folder / "runs", columns)
        for row in rows:
            runs.add(row)
        runs.flush()
        kept = write_splits(runs.paths, folder / "out", columns, 0.1, 0.1)
        outcomes.append(
            ([(folder / "out" / f"{split}.parquet").read_bytes() for split in SPLITS], kept, len(runs.paths))
        )
    assert outcomes[0][2] == 1
    assert outcomes[1][2] > 50
    assert outcomes[0][:2] == outcomes[1][:2]
    assert outcomes[0][1].duplicates["mine"] == 2999


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["{", "["], r"a\.jsonl: not one of its 2 records can be used for pretraining; line 1: not JSON"),
        ([{"body": "1 2 3"}], r"data\.pretraining: no record is left"),
        ([], r"data\.pretraining: no record is left"),
        ([{"body": "one text"}], r"none of its 1 records falls in the \w+ split: add data"),
    ],
)
def test_nothing_usable_is_an_error_and_leaves_what_was_there(
    tmp_path: Path, rows: list[Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.prepare.WORTH", 1)
    write_jsonl(tmp_path / "raw/mine/a.jsonl", [{"body": f"text {letters(n)}"} for n in range(30)])
    run(tmp_path, {"pretraining": [TABLE]})
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.parquet")}
    write_jsonl(tmp_path / "raw/mine/a.jsonl", rows)
    with pytest.raises(PipelineError, match=message):
        run(tmp_path, {"pretraining": [TABLE]}, workers=2)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.parquet")} == before
    assert [path.name for path in (tmp_path / "prepared").parent.iterdir() if path.name.startswith(".")] == []


def test_sources_not_fetched_and_of_the_wrong_kind(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="mine is not there: run the fetch stage first"):
        run(tmp_path, {"pretraining": [TABLE]})
    (tmp_path / "raw/mine").mkdir(parents=True)
    (tmp_path / "raw/mine/a.txt").write_text("x")
    with pytest.raises(
        PipelineError, match=r"holds no \.jsonl, \.json, \.csv, \.tsv, \.parquet file \(it holds a\.txt\)"
    ):
        run(tmp_path, {"pretraining": [TABLE]})
    (tmp_path / "raw/mine/a.whl").write_bytes(b"no archive")
    with pytest.raises(PipelineError, match=r"a\.whl is not what reader botocore_documents expects"):
        run(tmp_path, {"pretraining": [{"source": "mine", "reader": "botocore_documents"}]})


def test_the_command_names_the_missing_source_and_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    command = [sys.executable, "-m", "stages.prepare"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "error: data/raw/botocore is not there" in done.stderr
    assert not (tmp_path / "data/prepared").exists()
