"""Several seeds, in real processes: DVC's outputs stay as they are, and what is done is not done again."""

import json
import statistics
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stage_runs import finish, start, workspace
from tiny import VOCAB_SIZE, sentences

from lightning_modules.model_folder import new_model, save_model
from stages.params import load_params
from stages.seeds import seed_folder, table

SEEDS = ("stages.seeds", "translation", "--seeds", "2")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    few = {"steps": 4, "warmup_steps": 1, "validate_every": 4, "checkpoint_every": 4}
    changes = {"finetune": {k: v for k, v in few.items() if k != "steps"}, "task": {"steps": 4}}
    changes["evaluate"] = {"bootstrap_samples": 100, "max_records": 10}
    root = workspace(tmp_path_factory.mktemp("seeds") / "root", **changes)
    records = [{"id": str(n), "source": text, "target": text[:20]} for n, text in enumerate(sentences()[:10])]
    (root / "data/prepared/translation").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(records), root / "data/prepared/translation/test.parquet")
    (root / "models/pretrained").mkdir(parents=True)
    shape = load_params(root / "params.yaml").model.config(vocab_size=VOCAB_SIZE)
    save_model(root / "models/pretrained", new_model(shape, seed=9), root / "data/tokenizer/tokenizer.json", {})
    return root


def outputs(root: Path) -> dict[Path, bytes]:
    return {
        path: path.read_bytes() for room in ("data", "models") for path in (root / room).rglob("*") if path.is_file()
    }


def test_seeds_are_trained_scored_and_summed_up_apart(root: Path) -> None:
    before = outputs(root)
    log = finish(root, SEEDS)
    assert outputs(root) == before
    result = json.loads((root / "reports/seeds/translation.json").read_text())
    assert (result["seeds"], result["records"]) == ([2, 3], 10)
    chrf = result["scores"]["chrf"]
    assert chrf["difference"] == pytest.approx(
        [a - b for a, b in zip(chrf["pretrained"], chrf["scratch"], strict=True)], abs=1e-3
    )
    weights = {
        path.read_bytes() for path in root.glob(".pipeline/seeds/translation-*/models/translation*/model.safetensors")
    }
    assert len(weights) == 4, "each seed, pre-trained and from scratch, has learnt something else"
    assert table(result) in log
    again = finish(root, SEEDS)
    assert "parameters on" not in again
    assert table(result) in again


def test_the_table_shows_mean_and_standard_deviation() -> None:
    scores = {
        "chrf": {"pretrained": [30.0, 32.0, 34.5], "scratch": [20.0, 21.0, 22.0], "difference": [10.0, 11.0, 12.5]}
    }
    shown = table({"scores": scores})
    assert f"{statistics.mean(scores['chrf']['pretrained']):.1f} ± {statistics.stdev([30.0, 32.0, 34.5]):.1f}" in shown
    assert "20.0" not in shown
    assert "21.0 ± 1.0" in shown
    assert "+11.2 ± 1.3" in shown


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (("stages.seeds", "translation", "--seeds", "1"), "--seeds must be at least 2"),
        (("stages.seeds", "cooking"), "no task 'cooking' in params.yaml"),
    ],
)
def test_wrong_requests_are_one_line(root: Path, command: tuple[str, ...], told: str) -> None:
    assert start(root, command).wait(timeout=120) == 1
    log = (root / "log.txt").read_text()
    assert told in log
    assert "Traceback" not in log


@pytest.mark.parametrize("spelling", ["seed: 1 ", "'seed' : 1 ", "seed: 0x1 ", "? seed\n: 1 ", "seed: !!int '1' "])
def test_a_seed_has_its_own_params_however_the_seed_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelling: str
) -> None:
    text = Path(__file__).with_name("params.yaml").read_text(encoding="utf-8")
    assert "\nseed: 1 " in text
    (tmp_path / "params.yaml").write_text(text.replace("\nseed: 1 ", f"\n{spelling}"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    ours = load_params()
    assert ours.seed == 1
    assert load_params(seed_folder("translation-7", "abc", 7) / "params.yaml") == ours.model_copy(update={"seed": 7})
