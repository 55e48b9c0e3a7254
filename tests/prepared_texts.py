"""Small prepared splits, written as the prepare stage leaves them, for the tests of what reads them."""

import random
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from stages.tasks import TASKS


def columns(purpose: str) -> tuple[str, ...]:
    return TASKS[purpose].fields if purpose in TASKS else ("text",)


def write(prepared: Path, purpose: str, split: str, rows: Sequence[tuple[str, ...]], row_group: int = 7) -> None:
    """A row: the purpose's fields."""
    names = ("id", *columns(purpose))
    values = [tuple(f"{purpose}-{split}-{n}" for n in range(len(rows))), *zip(*rows, strict=True)]
    if not rows:
        values = [()] * len(names)
    table = pa.table([pa.array(list(column), pa.string()) for column in values], names=list(names))
    (prepared / purpose).mkdir(parents=True, exist_ok=True)
    pq.write_table(table, prepared / purpose / f"{split}.parquet", row_group_size=row_group)


def read(prepared: Path, name: str) -> list[dict[str, str]]:
    return pq.read_table(prepared / f"{name}.parquet").to_pylist()  # type: ignore[no-any-return]


def some_text(draw: random.Random) -> str:
    """Words of a small vocabulary, so that n-grams meet, on one or two lines."""
    return "".join(draw.choice("abcdefgh") + draw.choice("  \n") for _ in range(draw.randint(1, 9))).strip()
