"""Small prepared splits, written as the prepare stage leaves them, for the tests of what reads them."""

import random
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from stages.params import Params, load_params
from stages.tasks import TASKS

NGRAM, RECORD_SHARE = 3, 0.5


def params_of_short_grams() -> Params:
    """The small params.yaml with n-grams so short that texts of some_text hold one another's."""
    whole = load_params(Path(__file__).with_name("params.yaml"))
    leakage = whole.leakage.model_copy(update={"ngram": NGRAM, "record_share": RECORD_SHARE})
    return whole.model_copy(update={"leakage": leakage})


def grams(unit: str) -> list[tuple[str, ...]]:
    found = unit.lower().split()
    return [tuple(found[i : i + NGRAM]) for i in range(len(found) - NGRAM + 1)] or [tuple(found)]


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


def write_texts(prepared: Path, params: Params, seed: int, **counts: int) -> None:
    """So many random records for each split, of all purposes."""
    draw = random.Random(seed)
    for purpose in ("pretraining", *params.tasks):
        for split, count in counts.items():
            write(prepared, purpose, split, [tuple(some_text(draw) for _ in columns(purpose)) for _ in range(count)])
