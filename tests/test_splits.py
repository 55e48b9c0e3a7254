"""Merging sorted runs: more of them than a process may open files, with the result that a plain sort gives."""

import resource
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from stages.splits import SPLITS, Runs, digest, split_of, write_splits

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
