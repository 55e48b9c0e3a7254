"""What stays of the pre-training texts: the right ones, as often as they should, counted and shown."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prepared_texts import columns, read, write

from lightning_modules.errors import PipelineError
from stages.leakage import measure
from stages.params import Params, load_params
from stages.selection import Selected, select
from stages.splits import KEYS, ROW_GROUP, SPLITS, digest

NOTHING = {"near_duplicates": 0.0, "decontaminate": False, "weights": {}}
WORDS = ["lamp", "river", "stone", "bread", "cloud", "chair", "green", "seven", "walk", "sing", "north", "paper"]
Texts = Sequence[tuple[str, str]]  # (origin, text)


def settings(**values: Any) -> Params:
    params = load_params(Path(__file__).with_name("params.yaml"))
    return params.model_copy(update={"prepare": params.prepare.model_copy(update=NOTHING | values)})


@pytest.fixture(scope="module")
def origins() -> list[str]:
    return list(dict.fromkeys(entry.source for entry in settings().data["pretraining"]))


def some_words(draw: random.Random, count: int) -> str:
    return " ".join(f"{draw.choice(WORDS)}{draw.randrange(100)}" for _ in range(count))


def write_texts(folder: Path, **splits: Texts) -> dict[str, list[dict[str, str]]]:
    """Writes the splits of pre-training as prepare does, sorted by id, and test sets of the tasks beside them."""
    rows = {}
    for split in SPLITS:
        records = [(digest(text), digest(text), origin, text) for origin, text in splits[split]]
        rows[split] = [dict(zip((*KEYS, "text"), record, strict=True)) for record in sorted(records)]
        table = pa.Table.from_pylist(rows[split], pa.schema([(name, pa.string()) for name in (*KEYS, "text")]))
        (folder / "pretraining").mkdir(parents=True, exist_ok=True)
        pq.write_table(table, folder / "pretraining" / f"{split}.parquet", row_group_size=100)
    for task in settings().tasks:
        write(folder, task, "test", [tuple(f"the {task} asks for {name} today, does it?" for name in columns(task))])
    return rows


def plain(folder: Path, origins: list[str], train: int = 60) -> dict[str, list[dict[str, str]]]:
    """Texts that are like no other."""
    draw = random.Random(1)
    counts = {"train": train, "validation": 8, "test": 7}
    return write_texts(
        folder,
        **{split: [(draw.choice(origins), some_words(draw, 30)) for _ in range(n)] for split, n in counts.items()},
    )


def require_true_counts(selected: Selected, folder: Path, before: dict[str, list[dict[str, str]]]) -> None:
    """What is told agrees with what is written: for each origin before = after + dropped - repeated."""
    after = {split: read(folder, f"pretraining/{split}") for split in SPLITS}
    assert +selected.records == Counter((row["origin"], split) for split, rows in after.items() for row in rows)
    assert +selected.characters == sum(
        (Counter({row["origin"]: len(row["text"])}) for rows in after.values() for row in rows), Counter()
    )
    balance = Counter(row["origin"] for rows in after.values() for row in rows)
    for dropped in selected.dropped.values():
        balance += dropped
    balance.subtract(selected.repeated)
    assert +balance == Counter(row["origin"] for rows in before.values() for row in rows)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_with_everything_off_nothing_is_touched(tmp_path: Path, origins: list[str]) -> None:
    plain(tmp_path, origins)
    (tmp_path / "pretraining/validation.parquet").write_bytes(b"not even read")
    before = contents(tmp_path)
    selected = select(tmp_path, settings(), 1)
    assert replace(selected, samples=None) == replace(Selected(), samples=None)
    assert selected.samples.lines() == []
    assert contents(tmp_path) == before


def test_texts_like_no_other_all_stay(tmp_path: Path, origins: list[str]) -> None:
    before = plain(tmp_path, origins)
    selected = select(tmp_path, settings(near_duplicates=0.8, decontaminate=True), 1)
    assert {split: read(tmp_path, f"pretraining/{split}") for split in SPLITS} == before
    require_true_counts(selected, tmp_path, before)
    assert selected.samples.lines() == []


def test_of_near_duplicates_the_held_out_one_stays(tmp_path: Path, origins: list[str]) -> None:
    draw = random.Random(2)
    base = [some_words(draw, 60) for _ in range(6)]
    origin = origins[0]
    before = write_texts(
        tmp_path,
        train=[(origin, text) for text in (f"{base[0]} train", f"{base[1]} train", base[2], f"{base[2]} too", base[5])],
        validation=[(origin, text) for text in (f"{base[0]} validation", base[1], base[3])],
        test=[(origin, text) for text in (base[0], base[4], f"{base[4]} again")],
    )
    selected = select(tmp_path, settings(near_duplicates=0.8), 1)
    first = {
        number: min((base[number], f"{base[number]} {more}"), key=digest) for number, more in ((2, "too"), (4, "again"))
    }
    assert {row["text"] for row in read(tmp_path, "pretraining/test")} == {base[0], first[4]}
    assert {row["text"] for row in read(tmp_path, "pretraining/validation")} == {base[1], base[3]}
    assert {row["text"] for row in read(tmp_path, "pretraining/train")} == {first[2], base[5]}
    assert selected.dropped["near_duplicates"] == {origin: 5}
    require_true_counts(selected, tmp_path, before)

    details = {line["text"]: line["detail"] for line in selected.samples.lines()}
    shown = details[f"{base[1]} train"]
    assert shown == f"0.98 like pretraining/validation {digest(base[1])}: {base[1]}"[: len(shown)]  # 56 of 57 n-grams


def test_what_holds_a_test_record_goes_and_the_leakage_stage_agrees(tmp_path: Path, origins: list[str]) -> None:
    before = plain(tmp_path, origins)
    held = [
        before["test"][0]["text"],
        *("\n".join(read(tmp_path, f"{task}/test")[0][name] for name in columns(task)) for task in settings().tasks),
    ]
    texts = [(row["origin"], row["text"]) for row in before["train"]]
    planted = [(origins[-1], f"{some_words(random.Random(3), 30)}\n{text}") for text in held]
    before = write_texts(
        tmp_path,
        train=texts + planted,
        validation=[(row["origin"], row["text"]) for row in before["validation"]],
        test=[(row["origin"], row["text"]) for row in before["test"]],
    )
    for task in settings().tasks:
        for split in ("train", "validation"):
            write(tmp_path, task, split, [tuple("nothing of it" for _ in columns(task))])
    params = settings(decontaminate=True)
    assert all(
        numbers["leaked"]
        for name, numbers in measure(params, tmp_path, 1)[0].items()
        if name != "pretraining/validation"
    )

    selected = select(tmp_path, params, 1)
    assert {(row["origin"], row["text"]) for row in read(tmp_path, "pretraining/train")} == set(texts)
    assert selected.dropped["decontaminate"] == {origins[-1]: len(planted)}
    require_true_counts(selected, tmp_path, before)
    assert not any(numbers["leaked"] for numbers in measure(params, tmp_path, 1)[0].values())
    [line, *_] = [line for line in selected.samples.lines() if line["text"].endswith(held[1])]
    assert line["filter"] == "decontaminate"
    assert line["detail"].startswith(f"holds 100% of {next(iter(params.tasks))}/test ")


def test_weights(tmp_path: Path, origins: list[str]) -> None:
    draw = random.Random(5)
    often, seldom = origins[0], "seldom"
    texts = [(draw.choice([often, seldom, "plain"]), some_words(draw, 9)) for _ in range(3 * ROW_GROUP // 2)]
    held_out = [(often, some_words(draw, 9)) for _ in range(5)], [(seldom, some_words(draw, 9)) for _ in range(5)]
    before = write_texts(tmp_path, train=texts, validation=held_out[0], test=held_out[1])
    params = settings(weights={often: 2.25, seldom: 0.5})
    data = dict(params.data) | {"pretraining": [params.data["pretraining"][0]] * 3}
    data["pretraining"] = [
        entry.model_copy(update={"source": name})
        for entry, name in zip(data["pretraining"], (often, seldom, "plain"), strict=True)
    ]
    params = params.model_copy(update={"data": data})
    selected = select(tmp_path, params, 1)

    rows = read(tmp_path, "pretraining/train")
    times = Counter(row["id"] for row in rows)
    by_origin = {
        name: [times[row["id"]] for row in before["train"] if row["origin"] == name]
        for name in (often, seldom, "plain")
    }
    assert set(by_origin["plain"]) == {1}
    assert set(by_origin[seldom]) == {0, 1}
    assert set(by_origin[often]) == {2, 3}
    for name, mean in ((seldom, 0.5), (often, 2.25)):
        assert sum(by_origin[name]) / len(by_origin[name]) == pytest.approx(mean, abs=0.05)  # over five deviations
    assert not any(one["id"] == other["id"] for one, other in pairwise(rows))
    assert [row["id"] for row in rows[: sum(count > 0 for count in times.values())]] == sorted(times)
    assert {split: read(tmp_path, f"pretraining/{split}") for split in SPLITS[1:]} == {
        split: before[split] for split in SPLITS[1:]
    }
    require_true_counts(selected, tmp_path, before)
    assert selected.dropped["weights"] == {seldom: by_origin[seldom].count(0)}
    assert selected.repeated == {often: sum(by_origin[often]) - len(by_origin[often])}
    assert {line["detail"] for line in selected.samples.lines()} == {"weight 0.5"}
    file = pq.ParquetFile(tmp_path / "pretraining/train.parquet")
    sizes = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    assert set(sizes[:-1]) == {ROW_GROUP}
    assert 0 < sizes[-1] <= ROW_GROUP


def test_an_unknown_source_is_named_with_the_nearest(tmp_path: Path, origins: list[str]) -> None:
    plain(tmp_path, origins)
    with pytest.raises(
        PipelineError, match=rf"prepare.weights: {origins[0]}s is no source .*did you mean {origins[0]}\?"
    ):
        select(tmp_path, settings(weights={f"{origins[0]}s": 2.0}), 1)


def test_filters_come_in_order_and_workers_change_nothing(tmp_path: Path, origins: list[str]) -> None:
    results = []
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        before = plain(folder, origins, train=150)
        held = before["test"][0]["text"]
        texts = [(row["origin"], row["text"]) for row in before["train"]]
        texts += [
            (origins[0], f"{held} x"),
            (origins[0], f"{held} {' '.join(WORDS)}"),
            (origins[0], f"{texts[0][1]} x"),
        ]
        splits = {split: [(row["origin"], row["text"]) for row in before[split]] for split in SPLITS[1:]}
        before = write_texts(folder, train=texts, **splits)
        selected = select(folder, settings(near_duplicates=0.8, decontaminate=True, weights={origins[0]: 1.5}), workers)
        require_true_counts(selected, folder, before)
        assert selected.dropped["near_duplicates"] == {origins[0]: 2}  # one of them holds a test record, too
        assert selected.dropped["decontaminate"] == {origins[0]: 1}
        results.append((contents(folder), selected.samples.lines(), selected.records))
    assert results[0] == results[1]


def test_a_split_that_would_be_empty_is_one_line(tmp_path: Path, origins: list[str]) -> None:
    text = some_words(random.Random(7), 40)
    write_texts(
        tmp_path, train=[(origins[0], f"{text} x")], validation=[(origins[0], f"{text} y")], test=[(origins[0], text)]
    )
    before = contents(tmp_path)
    with pytest.raises(
        PipelineError, match=r"data.pretraining: none of the 1 texts of the train split is left: look at prep"
    ):
        select(tmp_path, settings(near_duplicates=0.8), 1)
    assert {name: data for name, data in contents(tmp_path).items() if name in before} == before
