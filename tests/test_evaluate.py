"""The stage evaluate on models that were never trained: every kind of model and task, and what it leaves behind."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny import lively, model, reader, sentences, write_tokenizer

from lightning_modules.errors import PipelineError
from lightning_modules.interop.ctranslate2_engine import CTranslate2Engine
from lightning_modules.model_folder import save_model
from lightning_modules.text_to_text import TextToText
from lightning_modules.transformer.heads import Classifier
from stages.evaluate import evaluate
from stages.params import Params, load_params
from stages.scores import score_task
from stages.tasks import TASKS

LABELS = ("one", "two", "three")
LIMITS = {"max_source_tokens": 60, "max_target_tokens": 12}
RECORDS = 16


def record(task: str, number: int) -> dict[str, str]:
    """A made-up record: its fields, and what prepare adds."""
    text, other = sentences()[number], sentences()[number + 40]
    values = {"answer": " ".join(text.split()[1:3]), "context": text, "label": LABELS[number % 3]}
    fields = {
        field: values.get(field, other if field == TASKS[task].fields[-1] else text) for field in TASKS[task].fields
    }
    return {"id": f"{number:04}"} | fields | dict.fromkeys(TASKS[task].extras, "")


def workspace(root: Path, task: str, made: Any, other: Any) -> Params:
    prepared = root / "data/prepared" / task
    prepared.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist([record(task, n) for n in range(RECORDS)]), prepared / "test.parquet")
    for name, one in ((task, made), (f"{task}-scratch", other)):
        (root / "models" / name).mkdir(parents=True)
        save_model(root / "models" / name, one, write_tokenizer(root / "tokenizer"), LIMITS)
        (root / "models" / name / "curve.csv").write_text("step,train_loss,validation_loss\n1,9.0,\n2,8.0,8.5\n")
    params = load_params(Path(__file__).parents[1] / "params.yaml")
    limits = params.evaluate.model_copy(update={"bootstrap_samples": 100, "max_records": RECORDS - 2})
    tasks = {task: next(iter(params.tasks.values()))}
    return params.model_copy(update={"evaluate": limits, "tasks": tasks})


def classifier(seed: int) -> Classifier:
    return Classifier(model(seed, architecture="encoder"), LABELS)


WRITES = {"likelihood"}
CASES = {
    "translation by an encoder-decoder": ("translation", lively(1), lively(2), WRITES),
    "dialogue by a decoder": ("dialogue", lively(1, architecture="decoder"), lively(2, architecture="decoder"), WRITES),
    "questions by an encoder-decoder": (
        "question_answering",
        lively(1),
        lively(2),
        WRITES | {"by_evidence", "calibration"},
    ),
    "questions by an encoder": ("question_answering", reader(1), reader(2), {"by_evidence", "calibration"}),
    "classes by an encoder": ("classification", classifier(1), classifier(2), {"calibration", "confusion"}),
    "classes by a decoder": (
        *("classification", lively(1, architecture="decoder"), lively(2, architecture="decoder")),
        WRITES | {"calibration", "confusion"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_every_kind_of_model_is_scored_and_looked_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    task, made, other, details = CASES[case]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nobody there
    params = workspace(tmp_path, task, made, other)
    evaluate(params, task)
    output = tmp_path / "reports/tasks" / task
    rows = [json.loads(line) for line in (output / "predictions.jsonl").read_text().split("\n") if line]
    answers = {system: [row[system] for row in rows] for system in ("pretrained", "scratch", "baseline")}
    sources, targets = ([row[side] for row in rows] for side in ("source", "target"))
    assert [row["id"] for row in rows] == [f"{n:04}" for n in range(RECORDS - 2)]
    assert answers["pretrained"] == TextToText.load(Path("models") / task).generate(sources)
    assert answers["scratch"] == TextToText.load(Path("models") / f"{task}-scratch").generate(sources)
    found = json.loads((output / "metrics.json").read_text())
    again = score_task(TASKS[task].metrics, targets, answers, 100, params.seed)
    assert {name: found[name] for name in again} == again
    analysis = json.loads((output / "analysis.json").read_text())
    assert {name for name, found in analysis.items() if found} - {"cut"} == {"by_length"} | details
    assert sum(bucket["records"] for bucket in analysis["by_length"]) == RECORDS - 2
    if "by_evidence" in details:
        assert {(one["low"], one["high"]) for one in analysis["by_evidence"]} == {(1, 1)}
    if task == "classification":
        assert set(answers["baseline"]) == {"one"}
    with (output / "curve.csv").open(newline="") as file:
        assert [row["init"] for row in csv.DictReader(file)] == ["pretrained", "pretrained", "scratch", "scratch"]
    assert (output / "attention.svg").read_text().startswith("<svg")


def test_another_engine_writes_the_answers_and_the_model_tells_the_likelihoods(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nobody there
    params = workspace(tmp_path, "translation", lively(1), lively(2))
    own = params.evaluate.model_copy(update={"engine": "ctranslate2"})
    evaluate(params.model_copy(update={"evaluate": own}), "translation")
    output = tmp_path / "reports/tasks/translation"
    rows = [json.loads(line) for line in (output / "predictions.jsonl").read_text().split("\n") if line]
    engine = CTranslate2Engine(Path("models/translation"))
    assert [row["pretrained"] for row in rows] == engine.generate([row["source"] for row in rows])
    assert json.loads((output / "analysis.json").read_text())["likelihood"]


def test_what_is_missing_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    params = workspace(tmp_path, "translation", lively(1), lively(2))
    with pytest.raises(PipelineError, match=r"no task 'cooking' in params.yaml, which has translation"):
        evaluate(params, "cooking")
    path = tmp_path / "data/prepared/translation/test.parquet"
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    with pytest.raises(PipelineError, match=r"test.parquet holds no record"):
        evaluate(params, "translation")
    path.unlink()
    with pytest.raises(PipelineError, match=r"test.parquet cannot be read .*: run the prepare stage again"):
        evaluate(params, "translation")
