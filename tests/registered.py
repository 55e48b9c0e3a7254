"""What the tests of the registry share: a model folder, results and a report on leakage, as the stages leave them."""

import json
from pathlib import Path
from typing import Any

import tiny

from lightning_modules.model_folder import new_model, save_model
from stages.params import Params, load_params
from stages.tasks import TASKS

TASK = "translation"
MODEL = f"transformer-{TASK}"
RECORDS = 60


def params() -> Params:
    """The tests' own params.yaml with one task, and quick."""
    whole = load_params(Path(__file__).with_name("params.yaml"))
    few = whole.evaluate.model_copy(update={"bootstrap_samples": 200})
    return whole.model_copy(update={"tasks": {TASK: whole.tasks[TASK]}, "evaluate": few})


def write_model(root: Path, seed: int, **changes: Any) -> Path:
    """An untrained model of two dozen thousand weights that writes something, in models/TASK."""
    folder = root / "models" / TASK
    folder.mkdir(parents=True, exist_ok=True)
    shape: dict[str, Any] = {"d_model": 16, "heads": 2, "d_ff": 32, "encoder_layers": 1, "decoder_layers": 1}
    model = new_model(tiny.config(**(shape | {"max_length": 32} | changes)), seed)
    tokenizer = tiny.write_tokenizer(root / "data" / "tokenizer")
    save_model(folder, model, tokenizer, {"max_source_tokens": 32, "max_target_tokens": 8})
    (folder / "training.json").write_text(json.dumps({"mlflow_run_id": "abc"}))
    return folder


def records(first: int = 0) -> list[dict[str, str]]:
    """Test records: a sentence to be repeated."""
    texts = tiny.sentences()[first : first + RECORDS]
    return [{"id": str(first + number), "source": text, "target": text} for number, text in enumerate(texts)]


def write_results(root: Path, right: float, first: int = 0, score: float | None = None, leaked: float = 0.0) -> None:
    """What evaluate, report and leakage leave, for a system that answers a share of `right` as it should."""
    rows = [
        row | {"pretrained": row["target"] if number < right * RECORDS else "???", "scratch": "", "baseline": ""}
        for number, row in enumerate(records(first))
    ]
    folder = root / "reports" / "tasks" / TASK
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    score = 100 * right if score is None else score
    numbers = {"pretrained": score, "pretrained_low": score - 1, "pretrained_high": score + 1}
    metric = numbers | {"gain": 3.0, "gain_low": 2.0, "gain_high": 4.0}
    (root / "reports" / "metrics.json").write_text(json.dumps({TASK: {TASKS[TASK].primary: metric}}))
    (root / "reports" / "leakage.json").write_text(json.dumps({f"{TASK}/test": {"share": leaked}}))
