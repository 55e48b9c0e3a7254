"""The stage evaluate on models that were never trained: every kind of model and task, and what it leaves behind."""

import csv
import json
from html import escape
from math import ceil
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny import SPECIAL, lively, model, reader, sentences, write_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers

from lightning_modules.answer_scores import target_likelihoods
from lightning_modules.errors import PipelineError
from lightning_modules.interop.ctranslate2_engine import CTranslate2Engine
from lightning_modules.model_folder import save_model, sha256
from lightning_modules.text_to_text import TextToText
from lightning_modules.transformer.heads import Classifier
from stages.evaluate import evaluate
from stages.metrics import normalized_answer
from stages.params import Params, load_params
from stages.report_details import details_section
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
    for split in ("train", "test"):
        pq.write_table(pa.Table.from_pylist([record(task, n) for n in range(RECORDS)]), prepared / f"{split}.parquet")
    for name, one in ((task, made), (f"{task}-scratch", other)):
        (root / "models" / name).mkdir(parents=True)
        save_model(root / "models" / name, one, write_tokenizer(root / "tokenizer"), LIMITS)
        (root / "models" / name / "curve.csv").write_text("step,train_loss,validation_loss\n1,9.0,\n2,8.0,8.5\n")
        course = {"steps": 2, "best_step": 1 + (name == task), "validation_loss": 8.5, "seconds": 1.0}
        (root / "models" / name / "training.json").write_text(json.dumps(course))
    params = load_params(Path(__file__).parents[1] / "params.yaml")
    limits = params.evaluate.model_copy(update={"bootstrap_samples": 100, "max_records": RECORDS - 2})
    tasks = {task: next(iter(params.tasks.values()))}
    return params.model_copy(update={"evaluate": limits, "tasks": tasks})


def classifier(seed: int) -> Classifier:
    return Classifier(model(seed, architecture="encoder"), LABELS)


WRITES = {"likelihood"}
CASES = {
    "translation by an encoder-decoder": ("translation", lively(1), lively(2), WRITES),
    "summaries by an encoder-decoder": ("summarization", lively(1), lively(2), WRITES),
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
    assert found["trainings"] == {
        "pretrained": {"steps": 2, "best_step": 2, "validation_loss": 8.5},
        "scratch": {"steps": 2, "best_step": 1, "validation_loss": 8.5},
    }
    analysis = json.loads((output / "analysis.json").read_text())
    assert {name for name, found in analysis.items() if found} - {"cut"} == {"by_length"} | details
    assert sum(bucket["records"] for bucket in analysis["by_length"]) == RECORDS - 2
    if "by_evidence" in details:
        assert {(one["low"], one["high"]) for one in analysis["by_evidence"]} == {(1, 1)}
    if task == "classification":
        assert set(answers["baseline"]) == {"one"}
    if task == "summarization":
        count = ceil(fmean(len(record(task, n)["summary"].split()) for n in range(RECORDS)))
        assert found["baseline_name"] == f"first {count} words"
        assert answers["baseline"] == [" ".join(source.split()[:count]) for source in sources]
    with (output / "curve.csv").open(newline="") as file:
        assert [row["init"] for row in csv.DictReader(file)] == ["pretrained", "pretrained", "scratch", "scratch"]
    assert (output / "attention.svg").read_text().startswith("<svg")


def test_every_answer_that_the_data_accepts_is_right_and_its_own_place_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nobody there
    params = workspace(tmp_path, "question_answering", reader(1), reader(2))
    path, about = Path("data/prepared/question_answering/test.parquet"), TASKS["question_answering"]
    rows = pq.read_table(path).to_pylist()
    rows = [row | {"context": f"{row['answer']} {row['context']} {row['answer']}"} for row in rows]
    answers = TextToText.load(Path("models/question_answering")).generate([about.source_text(row) for row in rows])
    for number, (row, answer) in enumerate(zip(rows, answers, strict=True)):
        row["answer_start"] = str(row["context"].rindex(row["answer"]))
        row["other_answers"] = json.dumps([f"the {answer}", "another"]) if number % 2 else ""
    pq.write_table(pa.Table.from_pylist(rows), path)
    evaluate(params, "question_answering")
    output = tmp_path / "reports/tasks/question_answering"
    told = [json.loads(line) for line in (output / "predictions.jsonl").read_text().split("\n") if line]
    right = [
        normalized_answer(row["answer"]) == normalized_answer(answer) for row, answer in zip(rows, answers, strict=True)
    ]
    wanted = [number % 2 == 1 or is_right for number, is_right in enumerate(right[: len(told)])]
    assert not all(wanted)
    found = json.loads((output / "metrics.json").read_text())["metrics"]
    assert found["exact_match"]["pretrained"]["score"] == pytest.approx(100 * sum(wanted) / len(told), abs=1e-3)
    assert [row.get("references") for row in told[:2]] == [None, [rows[1]["answer"], f"the {answers[1]}", "another"]]
    assert [row["target"] for row in told] == [row["answer"] for row in rows[: len(told)]]
    analysis = json.loads((output / "analysis.json").read_text())
    lengths = [len(row["context"][: int(row["answer_start"])].split()) for row in rows[: len(told)]]
    buckets = analysis["by_evidence"]
    assert (buckets[0]["low"], buckets[-1]["high"]) == (min(lengths), max(lengths))
    sure = analysis["calibration"]["pretrained"]
    assert sure["right"] == pytest.approx(sum(wanted) / len(told), abs=1e-5)


def test_where_the_tokenizer_does_not_know_what_is_written_bits_per_byte_are_told_to_mislead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nobody there
    params = workspace(tmp_path, "translation", lively(1), lively(2))
    targets = [record("translation", n)["target"].split() for n in range(RECORDS - 2)]
    known = sorted({word for target in targets for word in target})[::2]
    names = {name: number for number, name in enumerate([*SPECIAL, *known])}
    words = Tokenizer(models.WordLevel(names, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    for folder in Path("models").iterdir():
        words.save(str(folder / "tokenizer.json"))
        config = json.loads((folder / "config.json").read_text())
        own = {"tokenizer_sha256": sha256(folder / "tokenizer.json")}
        (folder / "config.json").write_text(json.dumps(config | own))
    evaluate(params, "translation")
    analysis = json.loads(Path("reports/tasks/translation/analysis.json").read_text())
    unknown = sum(word not in known for target in targets for word in target)
    share = unknown / sum(len(target) + 1 for target in targets)
    assert analysis["unknown_share"] == pytest.approx(share)
    sentence = f"{share:.2%} of the tokens are <unk>, which costs little to predict however many bytes it stands for"
    assert f"translation pretrained: {sentence}" in capsys.readouterr().out
    page = "".join(details_section({"translation": analysis}, {}, {}))
    assert f"Translation: {escape(sentence)}" in page
    assert "not to be compared with those of another tokenizer" in page
    assert "&lt;unk&gt;" not in "".join(details_section({"translation": analysis | {"unknown_share": 0.0}}, {}, {}))


@pytest.mark.parametrize("task", ["translation", "question_answering"])
def test_another_engine_writes_the_answers_and_the_model_tells_the_likelihoods(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nobody there
    params = workspace(tmp_path, task, lively(1), lively(2))
    own = params.evaluate.model_copy(update={"engine": "ctranslate2"})
    evaluate(params.model_copy(update={"evaluate": own}), task)
    output = tmp_path / "reports/tasks" / task
    rows = [json.loads(line) for line in (output / "predictions.jsonl").read_text().split("\n") if line]
    sources, answers = [row["source"] for row in rows], [row["pretrained"] for row in rows]
    assert answers == CTranslate2Engine(Path("models") / task).generate(sources)
    analysis = json.loads((output / "analysis.json").read_text())
    assert analysis["likelihood"]
    if task == "question_answering":
        nats_N = target_likelihoods(TextToText.load(Path("models") / task), sources, answers).nats_N
        assert analysis["calibration"]["pretrained"]["probability"] == pytest.approx(np.exp(-nats_N).mean(), rel=1e-4)


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
