"""Leakage: shares as a loop over sets of words gives them; a planted test text is found, named, and stops the stage."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prepared_texts import NGRAM, RECORD_SHARE, columns, grams, params_of_short_grams, read, write, write_texts

from lightning_modules.errors import PipelineError
from stages.held_out import held_out_sets
from stages.leakage import measure, require_clean
from stages.params import Params

REPOSITORY = Path(__file__).parents[1]
SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def params() -> Params:
    return params_of_short_grams()


@pytest.fixture
def prepared(tmp_path: Path, params: Params) -> Path:
    write_texts(tmp_path, params, seed=1, train=12, validation=9, test=30)
    return tmp_path


def held(records: list[dict[str, str]], fields: tuple[str, ...]) -> set[tuple[str, ...]]:
    texts = [record[name] for record in records for name in fields]
    lines = [line for text in texts for line in text.split("\n")]
    short = [line for line in lines if len(line.split()) < NGRAM]
    return {gram for unit in [*texts, *short] for gram in grams(unit)}


def expected_shares(prepared: Path, name: str, sources: tuple[str, ...]) -> list[float]:
    fields = columns(name.split("/")[0])
    seen = set().union(*(held(read(prepared, source), columns(source.split("/")[0])) for source in sources))
    shares = []
    for record in read(prepared, name):
        its = [gram for field in fields for gram in grams(record[field])]
        shares.append(sum(gram in seen for gram in its) / len(its))
    return shares


def test_the_shares_are_those_of_a_plain_loop(prepared: Path, params: Params) -> None:
    report, pairs = measure(params, prepared, workers=1)
    assert list(report) == [*(f"{task}/test" for task in params.tasks), "pretraining/validation", "pretraining/test"]
    for name, sources in held_out_sets(params).items():
        shares = expected_shares(prepared, name, sources)
        leaked = [share for share in shares if share >= RECORD_SHARE]
        assert 0 < len(leaked) < len(shares)
        assert report[name]["records"] == len(shares)
        assert report[name]["leaked"] == len(leaked)
        assert report[name]["share"] == pytest.approx(len(leaked) / len(shares), abs=1e-6)
        assert [pair["seen"] for pair in pairs[name]] == pytest.approx(sorted(leaked, reverse=True), abs=1e-4)
        for source, share in report[name]["share_by_source"].items():
            alone = expected_shares(prepared, name, (source,))
            assert share == pytest.approx(sum(one >= RECORD_SHARE for one in alone) / len(alone), abs=1e-6)
        assert sum(report[name]["histogram"]) == len(shares)
        assert report[name]["histogram"][0] == sum(share < 0.1 for share in shares)


def test_a_pair_names_a_training_record_that_holds_what_it_says(prepared: Path, params: Params) -> None:
    _, pairs = measure(params, prepared, workers=1)
    for found in pairs.values():
        for pair in found:
            [record] = [one for one in read(prepared, pair["training"]) if one["id"] == pair["training_id"]]
            purpose = pair["training"].split("/")[0]
            its = [gram for text in split_fields(prepared, pair) for gram in grams(text)]
            there = held([record], columns(purpose))
            assert 0 < pair["seen_there"] <= sum(gram in there for gram in its) / len(its) + 1e-4
            assert pair["training_text"] == "\n".join(record[name] for name in columns(purpose))


def split_fields(prepared: Path, pair: dict[str, Any]) -> list[str]:
    [record] = [one for one in read(prepared, pair["test_set"]) if one["id"] == pair["id"]]
    return [record[name] for name in columns(pair["test_set"].split("/")[0])]


def test_workers_change_nothing(prepared: Path, params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.overlap.WORTH", 1)  # so that little text has workers, too
    assert measure(params, prepared, workers=2) == measure(params, prepared, workers=1)


def test_nothing_in_common_and_nothing_at_all(tmp_path: Path, params: Params) -> None:
    for purpose in ("pretraining", *params.tasks):
        for split in SPLITS:
            empty = purpose == "pretraining" and split == "test"  # prepare allows that
            word = {"train": "learn", "validation": "choose", "test": "score"}[split]
            write(tmp_path, purpose, split, [] if empty else [(f"{word} this", *["..."] * (len(columns(purpose)) - 1))])
    report, pairs = measure(params, tmp_path, workers=1)
    assert {numbers["share"] for numbers in report.values()} == {0.0}
    assert report["pretraining/test"]["records"] == 0
    assert not any(pairs.values())
    require_clean(report, pairs, 0.0)


def test_a_missing_split_is_one_line(prepared: Path, params: Params) -> None:
    (prepared / "translation" / "test.parquet").write_bytes(b"no parquet")
    with pytest.raises(PipelineError, match=r"translation/test.parquet cannot be read .*: run the prepare"):
        measure(params, prepared, workers=1)


def leakage(root: Path) -> subprocess.CompletedProcess[str]:
    # Nobody answers there: what is tested needs no tracking.
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    command = [sys.executable, "-m", "stages.leakage"]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)


def test_the_stage_fails_with_the_pair_until_the_text_is_gone(tmp_path: Path, params: Params) -> None:
    (tmp_path / "params.yaml").write_text(Path(__file__).with_name("params.yaml").read_text())
    planted = "to open the garden gate you have to turn the wheel twice and pull"
    for purpose in ("pretraining", *params.tasks):
        for split in SPLITS:
            words = [f"{purpose}{split}{n}" for n in range(9)]
            write(tmp_path / "data/prepared", purpose, split, [tuple(" ".join(words) for _ in columns(purpose))] * 3)
    others = [("something else altogether",)] * 8
    write(tmp_path / "data/prepared", "pretraining", "train", [*others, (f"Read this: {planted.title()}!",)])
    write(tmp_path / "data/prepared", "translation", "test", [("go", "los"), (planted, "zweimal drehen")])

    (tmp_path / "pandas.py").write_text("raise SystemExit('half a second for nothing')")
    failed = leakage(tmp_path)
    assert failed.returncode == 1
    [line] = [line for line in failed.stderr.splitlines() if line.startswith("error: ")]
    assert "data/prepared/translation/test.parquet: 1 of 2 records (50.0%)" in line
    assert (
        "translation-test-1 (88%; pretraining/train pretraining-train-8)" in line
    )  # all 7 of the source, not the target
    [pair] = [json.loads(line) for line in (tmp_path / "reports/leakage.jsonl").read_text().splitlines()]
    assert pair["training_text"] == f"Read this: {planted.title()}!"
    assert json.loads((tmp_path / "reports/leakage.json").read_text())["translation/test"]["leaked"] == 1
    assert not (tmp_path / "reports/leakage.passed").exists()

    write(tmp_path / "data/prepared", "pretraining", "train", others)
    passed = leakage(tmp_path)
    assert passed.returncode == 0, passed.stderr
    assert (tmp_path / "reports/leakage.passed").exists()
    assert "translation/test: 0 of 2 records leaked (0.00%)" in passed.stdout


def test_a_language_tag_hides_no_text(tmp_path: Path, params: Params) -> None:
    for purpose in ("pretraining", *params.tasks):
        for split in SPLITS:
            write(tmp_path, purpose, split, [tuple(f"{purpose} {split} {name}" for name in columns(purpose))])
    write(tmp_path, "translation", "test", [("to de: light", "hell"), ("to de: go on now", "los")])
    write(tmp_path, "translation", "train", [("to fr: Go on now!", "en avant")])
    write(tmp_path, "pretraining", "train", [("Light",)])
    report, pairs = measure(params, tmp_path, workers=1)
    shares = report["translation/test"]["share_by_source"]
    assert shares == {"pretraining/train": 0.5, "translation/train": 0.5, "translation/validation": 0.0}
    assert {pair["text"] for pair in pairs["translation/test"]} == {"to de: light\nhell", "to de: go on now\nlos"}
