"""Arrow arrays made from buffers against Arrow's own, and stages that meet tables without loading pandas."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages import arrow_arrays
from stages.arrow_arrays import binary_array, boolean_array, string_array

ROOT = Path(__file__).parents[1]
TEXTS = st.lists(st.text(st.characters(codec="utf-8")))
DATA_STAGES = """
import sys
from pathlib import Path
sys.path.insert(0, "tests")
import preparing
from stages.drift_known import load_known, remember
from stages.leakage import measure
from stages.splits import read_split

root = Path(sys.argv[1])
rows = [{"text": " ".join(preparing.letters(20 * row + word) for word in range(20))} for row in range(200)]
pairs = [{"source": row["text"][10:], "target": row["text"][:-10]} for row in rows]  # whose group is another
preparing.write_jsonl(root / "raw/texts/a.jsonl", [*rows, {"text": rows[0]["text"] + " once more"}])
preparing.write_jsonl(root / "raw/pairs/a.jsonl", pairs)
data = {
    "pretraining": [{"source": "texts", "reader": "table", "columns": {"text": "text"}}],
    "translation": [{"source": "pairs", "reader": "table", "columns": {"source": "source", "target": "target"}}],
}
report = preparing.run(root, data, near_duplicates=0.6, weights={"texts": 1.5})
assert report["pretraining"]["texts"]["dropped"]["near_duplicates"] == 1
params = preparing.params_of(data)
_, pairs = measure(params, root / "prepared", 1)
assert any(pairs.values()), "no record is looked up"
assert read_split(root / "prepared/translation", "test", 3)
remember(root / "prepared", root / "known")
assert load_known(root / "known").words
assert "pandas" not in sys.modules
"""


@settings(deadline=None)  # Arrow loads pandas once
@given(TEXTS)
def test_strings(texts: list[str]) -> None:
    assert string_array(texts).equals(pa.array(texts, pa.string()))
    encoded = [text.encode() for text in texts]
    assert binary_array(encoded).equals(pa.array(encoded, pa.large_binary()))


def test_strings_of_more_bytes_than_an_array_holds_are_arrows_own(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["wheel", "", "Rad"]
    monkeypatch.setattr(arrow_arrays, "_MOST_BYTES", 10)
    assert pa.table({"text": string_array(texts)})["text"].to_pylist() == texts


@settings(deadline=None)
@given(st.lists(st.booleans()))
def test_flags(flags: list[bool]) -> None:
    assert boolean_array(np.array(flags, np.bool_)).equals(pa.array(flags, pa.bool_()))


def test_data_stages_do_not_load_pandas(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DATA_STAGES, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
