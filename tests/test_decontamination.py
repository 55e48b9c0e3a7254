"""What texts hold is what a loop over sets of words finds, and then the leakage stage finds nothing."""

import random
from pathlib import Path

import numpy as np
import pytest
from prepared_texts import NGRAM, RECORD_SHARE, columns, grams, params_of_short_grams, read, write, write_texts

from lightning_modules.errors import PipelineError
from stages import decontamination
from stages.decontamination import held_records
from stages.held_out import held_out_sets
from stages.leakage import measure
from stages.params import Params

Gram = tuple[str, ...]


@pytest.fixture(scope="module")
def params() -> Params:
    return params_of_short_grams()


@pytest.fixture
def prepared(tmp_path: Path, params: Params) -> Path:
    write_texts(tmp_path, params, seed=2, train=60, validation=9, test=30)
    return tmp_path


def expected(prepared: Path, params: Params, common: int) -> list[tuple[int, float]]:
    """For each training text the record of which it holds most, and the share; (-1, 0) where that is too little."""
    names = [(name, columns(name.split("/")[0])) for name in held_out_sets(params)]
    fields = [[record[field] for field in of] for name, of in names for record in read(prepared, name)]
    records = [[gram for field in of for gram in grams(field)] for of in fields]
    long = [sum(len(field.split()) for field in of) >= NGRAM for of in fields]
    times = [gram for record, enough in zip(records, long, strict=True) if enough for gram in record]
    rare = [[gram for gram in record if times.count(gram) <= common] for record in records]
    found = []
    for text in read(prepared, "pretraining/train"):
        units = [text["text"], *(line for line in text["text"].split("\n") if len(line.split()) < NGRAM)]
        there = {gram for unit in units for gram in grams(unit)}
        shares = [
            sum(gram in there for gram in record) / len(record) if record and enough else 0.0
            for record, enough in zip(rare, long, strict=True)
        ]
        best = max(shares)
        found.append((shares.index(best), best) if best >= RECORD_SHARE else (-1, 0.0))
    return found


@pytest.mark.parametrize(("common", "joined"), [(1000, 4_000_000), (6, 5)])
def test_what_is_held_is_what_a_plain_loop_finds(
    prepared: Path, params: Params, common: int, joined: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decontamination, "COMMON", common)
    monkeypatch.setattr(decontamination, "_PAIRS", joined)  # so few that texts are joined one by one
    held = held_records(params, prepared, 1, prepared)
    records, shares = zip(*expected(prepared, params, common), strict=True)
    assert held.records_T.tolist() == list(records)
    assert held.shares_T == pytest.approx(shares)
    assert 3 < sum(record >= 0 for record in records) < len(records) - 3


def test_workers_change_nothing_and_leave_nothing(prepared: Path, params: Params) -> None:
    before = sorted(path.name for path in prepared.iterdir())
    alone, both = (held_records(params, prepared, workers, prepared) for workers in (1, 2))
    assert np.array_equal(alone.records_T, both.records_T)
    assert np.array_equal(alone.shares_T, both.shares_T)
    assert sorted(path.name for path in prepared.iterdir()) == before


def test_what_is_held_is_told(prepared: Path, params: Params) -> None:
    held = held_records(params, prepared, 1, prepared)
    tests = [(name, record["id"]) for name in held_out_sets(params) for record in read(prepared, name)]
    for text in np.flatnonzero(held.records_T >= 0).tolist():
        name, identity = tests[held.records_T[text]]
        assert held.describe(text).startswith(f"holds {held.shares_T[text]:.0%} of {name} {identity}: ")


def test_without_them_the_leakage_stage_finds_nothing(tmp_path: Path, params: Params) -> None:
    """Where the n-grams of a record stand together in one text, or nowhere."""
    draw = random.Random(4)
    for purpose in ("pretraining", *params.tasks):
        for split in ("train", "validation", "test"):
            rows = [
                tuple(
                    f"{purpose} {split} {n} " + " ".join(draw.choices(["up", "down", "left", "right"], k=12))
                    for _ in columns(purpose)
                )
                for n in range(20)
            ]
            write(tmp_path, purpose, split, rows)
    held_out = [record["source"] + "\n" + record["target"] for record in read(tmp_path, "translation/test")[:4]]
    held_out += [record["text"] for record in read(tmp_path, "pretraining/test")[:4]]
    clean = [(f"Nothing of the {n}th sort stands here.",) for n in range(30)]
    texts = [*clean[:10], *((f"Before it.\n{text}\nAnd after.",) for text in held_out), *clean[10:]]
    write(tmp_path, "pretraining", "train", texts)
    leaked, _ = measure(params, tmp_path, 1)
    assert leaked["translation/test"]["share_by_source"]["pretraining/train"] >= 0.2
    assert leaked["pretraining/test"]["share"] >= 0.2

    held = held_records(params, tmp_path, 1, tmp_path)
    dropped = np.flatnonzero(held.records_T >= 0).tolist()
    assert dropped == list(range(10, 18))
    write(tmp_path, "pretraining", "train", [text for row, text in enumerate(texts) if row not in dropped])
    report, _ = measure(params, tmp_path, 1)
    assert {numbers["share_by_source"]["pretraining/train"] for numbers in report.values()} == {0.0}


def test_a_text_with_the_lines_of_a_short_record_stays(prepared: Path, params: Params) -> None:
    write(prepared, "translation", "test", [("Hi!", "Hallo"), ("Hi there you all", "Hallo")])
    write(prepared, "pretraining", "train", [("Hi\nHallo\nand more",), ("hi there you all\nHallo",)])
    for name in ("validation", "test"):
        write(prepared, "pretraining", name, [("something else",)])
    held = held_records(params, prepared, 1, prepared)
    assert (held.records_T >= 0).tolist() == [False, True]
    assert held.describe(1) == "holds 100% of translation/test translation-test-1: Hi there you all\nHallo"


def test_a_missing_test_split_is_one_line(prepared: Path, params: Params) -> None:
    (prepared / "translation" / "test.parquet").write_bytes(b"no parquet")
    with pytest.raises(PipelineError, match=r"translation/test.parquet cannot be read .*: run the prepare"):
        held_records(params, prepared, 1, prepared)


def test_a_text_that_is_a_test_source_without_its_language_tag_goes(prepared: Path, params: Params) -> None:
    write(prepared, "translation", "test", [("to de: Turn on the light", "Licht an")])
    write(prepared, "pretraining", "train", [("Turn on the light",), ("Turn it off",)])
    held = held_records(params, prepared, 1, prepared)
    assert held.records_T[0] >= 0
    assert held.describe(0) == "holds 67% of translation/test translation-test-0: to de: Turn on the light\nLicht an"
    assert held.records_T[1] < 0
