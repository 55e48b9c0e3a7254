"""Small raw files through the prepare stage, for the tests of readers."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from ruamel.yaml import YAML

from stages.params_schema import Params
from stages.prepare import prepare
from stages.splits import SPLITS

ROOT = Path(__file__).parents[1]


def letters(number: int) -> str:
    """Words that tell records apart, since numbers are no letters."""
    return "".join(chr(ord("a") + int(digit)) for digit in str(number))


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def write_jsonl(path: Path, rows: list[Any]) -> None:
    """A row a line; a text is a line as it stands."""
    write(path, "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


def run(root: Path, data: dict[str, list[dict[str, Any]]], workers: int = 1, **limits: Any) -> dict[str, Any]:
    """Prepares `data` from root/raw, without what looks at several texts at a time; returns the report."""
    values = YAML(typ="safe").load((ROOT / "params.yaml").read_text())
    alone = {"near_duplicates": 0.0, "decontaminate": False}
    values["prepare"] |= {"validation_share": 0.25, "test_share": 0.25, **alone, **limits}
    values["tasks"] = {task: budget for task, budget in values["tasks"].items() if task in data}
    params = Params.model_validate({**values, "data": data})
    prepare(params, root / "raw", root / "prepared", root / "report.json", workers)
    return json.loads((root / "report.json").read_text())  # type: ignore[no-any-return]


def records(root: Path, purpose: str) -> list[dict[str, str]]:
    """All records, each with its split."""
    files = {split: root / "prepared" / purpose / f"{split}.parquet" for split in SPLITS}
    return [{**record, "split": split} for split in SPLITS for record in pq.read_table(files[split]).to_pylist()]


def quarantine(root: Path) -> list[tuple[int, str]]:
    lines = (root / "prepared/quarantine.jsonl").read_text().splitlines()
    return [(item["line"], item["reason"]) for item in map(json.loads, lines)]
