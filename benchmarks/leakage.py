"""What splitting by group saves: leaked test records as data/prepared is split, and if it were split record by record.

    dvc repro prepare && python -m benchmarks.leakage

Prints a line a test set. 30 s for the default data on two cores.
"""

import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from stages.leakage import PREPARED, measure
from stages.parallel import cores
from stages.params import Params, load_params
from stages.splits import ROW_GROUP, SPLITS, split_of
from stages.tasks import PRETRAINING


def split_by_record(prepared: Path, purpose: str, params: Params, output: Path) -> None:
    """Writes a purpose's records again, as if each were a group of its own."""
    table = pa.concat_tables([pq.read_table(prepared / purpose / f"{split}.parquet") for split in SPLITS])
    shares = params.prepare.validation_share, params.prepare.test_share
    places = [split_of(identity, *shares) for identity in table["id"].to_pylist()]
    (output / purpose).mkdir()
    for split in SPLITS:
        part = table.filter(pa.array([place == split for place in places]))
        pq.write_table(part, output / purpose / f"{split}.parquet", row_group_size=ROW_GROUP)


def main() -> None:
    """Measures both and prints them side by side."""
    params = load_params()
    as_it_is, _ = measure(params, PREPARED, cores())
    with tempfile.TemporaryDirectory() as folder:
        for purpose in (PRETRAINING, *params.tasks):
            split_by_record(PREPARED, purpose, params, Path(folder))
        by_record, _ = measure(params, Path(folder), cores())
    print(f"{'test set':<28} {'by group':>9} {'by record':>10}")
    for name, numbers in as_it_is.items():
        print(f"{name:<28} {numbers['share']:>9.1%} {by_record[name]['share']:>10.1%}")


if __name__ == "__main__":
    main()
