"""Merging sorted runs: more of them than a process may open files, as a plain sort would; more data moves nothing away
from training.
"""

import resource
import subprocess
import sys
import tracemalloc
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_modules.errors import PipelineError
from stages.splits import SPLITS, Runs, digest, read_split, split_of, write_splits

COLUMNS = ("id", "group", "origin", "text")
RUNS, EACH = 600, 3


@pytest.fixture
def few_files() -> Iterator[None]:
    """As many open files as some systems allow: fewer than there are runs."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, before[1]), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_more_runs_than_open_files_are_merged_as_a_sort_would(tmp_path: Path, few_files: None) -> None:
    paths, first_of = list[Path](), dict[str, tuple[str, ...]]()
    for run in range(RUNS):
        runs = Runs(tmp_path / f"run-{run}", COLUMNS)
        for number in range(EACH):
            name = digest(str((run * EACH + number) % (RUNS * EACH - 100)))  # the last hundred came before
            record = (name, name, f"origin {run % 2}", f"text {run} {number}")
            runs.add(record)
            first_of.setdefault(name, record)
        runs.flush()
        paths += runs.paths
    kept = write_splits(paths, tmp_path / "out", COLUMNS, 0.2, 0.2)
    assert kept.duplicates.total() == 100
    for split in SPLITS:
        expected = [record for _, record in sorted(first_of.items()) if split_of(record[1], 0.2, 0.2) == split]
        found = pq.read_table(tmp_path / "out" / f"{split}.parquet").to_pylist()
        assert [tuple(row.values()) for row in found] == expected
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(f"{split}.parquet" for split in SPLITS)


def written(
    files: Sequence[Sequence[tuple[str, str]]], folder: Path
) -> tuple[dict[str, tuple[str, str]], Counter[str]]:
    """Where each id of (id, group) ends up, with its group, and the duplicates by origin: the file's number."""
    paths = list[Path]()
    for number, rows in enumerate(files):
        runs = Runs(folder / f"runs-{number}", COLUMNS)
        for identity, group in rows:
            runs.add((identity, group, str(number), "text"))
        runs.flush()
        paths += runs.paths
    kept = write_splits(paths, folder / "out", COLUMNS, 0.3, 0.3)
    tables = {split: pq.read_table(folder / "out" / f"{split}.parquet").to_pylist() for split in SPLITS}
    places = {row["id"]: (split, row["group"]) for split, table in tables.items() for row in table}
    assert len(places) == sum(map(len, tables.values())) == kept.records.total()
    return places, kept.duplicates


def group_in(split: str, number: int = 0) -> str:
    return [name for name in map(str, range(99)) if split_of(name, 0.3, 0.3) == split][number]


def test_of_equals_the_one_nearest_to_training_stays_of_those_the_first(tmp_path: Path) -> None:
    train, test, validation = (group_in(split) for split in ("train", "test", "validation"))
    files = [
        [("a", test), ("b", validation), ("c", train)],
        [("a", validation), ("b", test), ("c", group_in("train", 1))],
        [("a", train), ("b", validation), ("c", test)],
    ]
    places, duplicates = written(files, tmp_path)
    assert places == {"a": ("train", train), "b": ("validation", validation), "c": ("train", train)}
    assert duplicates == {"0": 1, "1": 3, "2": 2}


ROWS = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([str(n) for n in range(12)])), max_size=6)


@given(files=st.lists(st.tuples(st.booleans(), ROWS, ROWS), min_size=1, max_size=4))
def test_more_data_moves_nothing_from_training_to_a_test(
    files: list[tuple[bool, list[tuple[str, str]], list[tuple[str, str]]]],
) -> None:
    """Whole files come in between, and rows at the end of files that were there."""
    with TemporaryDirectory() as one, TemporaryDirectory() as two:
        before, _ = written([rows for there, rows, _ in files if there], Path(one))
        after, duplicates = written([rows + more for _, rows, more in files], Path(two))
    for identity, (split, _) in before.items():
        assert SPLITS.index(after[identity][0]) <= SPLITS.index(split)
    assert duplicates.total() + len(after) == sum(len(rows + more) for _, rows, more in files)


def test_who_reads_a_split_loads_no_pandas(tmp_path: Path) -> None:
    places, _ = written([[("a", group_in("test"))]], tmp_path)
    code = "import sys; from pathlib import Path; from stages.splits import read_split; "
    code += "[row] = read_split(Path(sys.argv[1]), 'test', 0); print(row['id'], 'pandas' in sys.modules)"
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [*places, "False"]


def test_memory_does_not_grow_with_the_number_of_equals(tmp_path: Path) -> None:
    runs, copies = Runs(tmp_path / "runs", COLUMNS), 6000
    for number in range(copies):
        runs.add(("same", str(number), "mine", f"{number} " * 500))
        if number % 1000 == 999:
            runs.flush()
    tracemalloc.start()
    try:
        kept = write_splits(runs.paths, tmp_path / "out", COLUMNS, 0.3, 0.3)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept.duplicates["mine"] == copies - 1
    assert peak < 6_000_000, "of 14 million characters"


def test_a_damaged_split_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "test.parquet").write_bytes(b"no parquet")
    with pytest.raises(PipelineError, match=r"test.parquet cannot be read .*: run the prepare stage again"):
        read_split(tmp_path, "test", 0)
