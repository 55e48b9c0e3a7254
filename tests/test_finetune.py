"""Fine-tuning an encoder for classes and for places, with few weights; from texts to answers, in this process."""

import json
import os
import platform
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file
from sklearn.metrics import f1_score
from stage_runs import workspace
from tiny import EOS, read_json, sentences, write_tokenizer

from lightning_modules.decoding import Decoding
from lightning_modules.errors import PipelineError
from lightning_modules.model_folder import load_model, load_tokenizer, read_config
from lightning_modules.text_to_text import TextToText
from lightning_modules.transformer.heads import Classifier, SpanReader
from stages.finetune import finetune, materials, scorer
from stages.metrics import metric
from stages.params import load_params
from stages.pretrain import pretrain
from stages.splits import SPLITS, read_split
from stages.tasks import TASKS
from stages.tokenize import tokenize

SHORT = {"warmup_steps": 5, "checkpoint_every": 50, "validate_every": 25, "dropout": 0.0, "label_smoothing": 0.0}
LIMITS = {"max_source_tokens": 40, "max_target_tokens": 8, "learning_rate": 5e-3}
Rows = list[dict[str, str]]


def here(
    root: Path, monkeypatch: pytest.MonkeyPatch, task: str, rows: Rows, steps: int, **changes: dict[str, Any]
) -> None:
    """Makes a workspace the present folder, an encoder pre-trained for a step, and `rows` the task's data."""
    objective = {"objective": "masked_lm", "packing": "best_fit", "steps": 1, "warmup_steps": 1, "checkpoint_every": 50}
    objective |= changes.pop("pretrain", {})
    model = {"preset": "small-encoder", "max_length": 128} | changes.pop("model", {})
    tuning = SHORT | changes.pop("finetune", {})
    shipped = "question_answering"
    workspace(root, shipped, model=model, pretrain=objective, finetune=tuning, task={"steps": steps, **LIMITS})
    monkeypatch.chdir(root)
    shutil.rmtree("data/tokens")
    if task != shipped:
        yaml = YAML()
        params = yaml.load(Path("params.yaml").read_text(encoding="utf-8"))
        params["tasks"] = {task: params["tasks"][shipped]}
        columns = {name: name for name in TASKS[task].fields}
        params["data"][task] = [{"source": "botocore", "reader": "table", "columns": columns}]
        del params["data"][shipped]
        with Path("params.yaml").open("w", encoding="utf-8") as file:
            yaml.dump(params, file)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nobody answers there
    tokenizer = write_tokenizer(Path("data/tokenizer"))
    for purpose, found in (("pretraining", [{"text": text} for text in sentences()[:300]]), (task, rows)):
        Path("data/prepared", purpose).mkdir(parents=True)
        for split in SPLITS:
            part = found[:-40] if split == "train" else found[-40:]
            pq.write_table(pa.Table.from_pylist(part), f"data/prepared/{purpose}/{split}.parquet")
    tokenize(Path("data/prepared"), tokenizer, Path("data/tokens"), workers=1)
    pretrain(load_params())


def kinds_of_sentences() -> Rows:
    """Whether a sentence has one of two words, or none, from the first 30 tokens."""
    rows = []
    for number in range(240):
        words = sentences()[number].split()[:8]
        label = ("fruit", "Getränk", "none")[number % 3]
        words[number % len(words)] = {"fruit": "apple", "Getränk": "water", "none": words[0]}[label]
        rows.append({"text": " ".join(words), "label": label})
    return rows


def test_an_encoder_names_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = kinds_of_sentences()
    here(tmp_path / "run", monkeypatch, "classification", rows, steps=100, finetune={"choose_by": "score"})
    finetune(load_params(), "classification", from_scratch=False)
    folder = Path("models/classification")
    assert isinstance(load_model(folder), Classifier)
    assert read_config(folder)["labels"] == ["Getränk", "fruit", "none"]
    naming = TextToText.load(folder)
    held_out = read_split(Path("data/prepared/classification"), "validation", 200)
    wanted, named = [row["label"] for row in held_out], naming.generate([row["text"] for row in held_out])
    chosen = json.loads((folder / "training.json").read_text())["validation_score"]
    assert chosen == pytest.approx(100 * f1_score(wanted, named, average="macro"))
    answers = naming.generate([row["text"] for row in rows[-40:]])
    right = sum(answer == row["label"] for answer, row in zip(answers, rows[-40:], strict=True))
    assert right >= 34
    (score,) = naming.scores(["apple"])
    assert sum(score.values()) == pytest.approx(1.0)


def questions() -> Rows:
    """Which number, in contexts of 5 to 100 tokens; every third has none."""
    rows = []
    for number in range(300):
        words = re.sub(r"\d", "", " ".join(sentences()[number : number + 1 + number % 4])).split()
        answer = "" if number % 3 == 0 else f"{number % 10}"
        at = number * 7 % (len(words) + 1)
        context = " ".join([*words[:at], *([answer] if answer else []), *words[at:]])
        rows.append({"question": "which number?", "context": context, "answer": answer})
    return rows


def test_an_encoder_points_at_answers_in_long_contexts_and_says_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = {"question": "which number?", "context": "the answer is not here", "answer": "99"}
    rows = [lost, lost, *questions()]
    here(tmp_path / "run", monkeypatch, "question_answering", rows, 150, model={"positions": "relative"})
    finetune(load_params(), "question_answering", from_scratch=True)
    told = capsys.readouterr().out
    assert "have no answer" in told
    folder = Path("models/question_answering-scratch")
    assert isinstance(load_model(folder), SpanReader)
    training = json.loads((folder / "training.json").read_text())
    assert training["missing"] == len([lost, lost])
    assert training["machine"].endswith(f", {os.cpu_count()} cores, {platform.system()} {platform.release()}")
    assert isinstance(read_config(folder)["threshold"], float)
    pointing = TextToText.load(folder)
    sources = [f"question: {row['question']} context: {row['context']}" for row in rows[-40:]]
    assert max(len(pointing.tokenizer.encode(source).ids) for source in sources) > 2 * 40
    answers = pointing.generate(sources)
    right = sum(answer == row["answer"] for answer, row in zip(answers, rows[-40:], strict=True))
    assert right >= 30
    assert 5 <= sum(not answer for answer in answers) <= 22


def f1_of(model: SpanReader, rows: Rows, threshold: float | None) -> float:
    pointing = TextToText(model, load_tokenizer(Path("data/tokenizer")), 40, Decoding(8), False, threshold)
    answers = pointing.generate([TASKS["question_answering"].source_text(row) for row in rows])
    found = metric("f1")
    return found.score(found.statistics(answers, [row["answer"] for row in rows]).sum(0))


def test_while_it_trains_a_model_that_points_may_say_that_there_is_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here(tmp_path / "run", monkeypatch, "question_answering", questions(), 5)
    model, _, _ = materials(load_params(), "question_answering", from_scratch=True)
    assert isinstance(model, SpanReader)
    model.ends.weight.data.copy_(model.encoder.embedding.weight_VD.data[EOS])  # points at </s>, for no answer, or near
    model.eval()
    folder, limits = Path("data/prepared/question_answering"), {"max_source_tokens": 40, "max_target_tokens": 8}
    held_out = read_split(folder, "validation", 200)
    score = scorer("question_answering", limits)(model)
    assert score == pytest.approx(f1_of(model, held_out, 0.0))
    assert score > f1_of(model, held_out, None)
    answered = [row for row in held_out if row["answer"]]
    pq.write_table(pa.Table.from_pylist(answered), folder / "validation.parquet")
    assert scorer("question_answering", limits)(model) == pytest.approx(f1_of(model, answered, None))


def test_what_is_frozen_comes_out_as_it_was_and_the_control_learns_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here(
        tmp_path / "run",
        monkeypatch,
        "classification",
        kinds_of_sentences(),
        steps=6,
        model={"encoder_layers": 2},
        finetune={"lora_rank": 2, "freeze_layers": 1},
    )
    finetune(load_params(), "classification", from_scratch=False)
    assert "parameters learn" in capsys.readouterr().out
    before = load_file("models/pretrained/model.safetensors")
    after = load_file("models/classification/model.safetensors")
    moved = {name for name, weight in before.items() if not torch.equal(after[f"encoder.{name}"], weight)}
    assert moved == {f"encoder.blocks.1.attention.{which}.weight" for which in ("query", "key_value", "output")}
    finetune(load_params(), "classification", from_scratch=True)
    learnt = load_file("models/classification-scratch/model.safetensors")
    assert learnt.keys() == after.keys()
    model, _, _ = materials(load_params(), "classification", from_scratch=True)
    first = model.state_dict()
    still = {name for name, weight in learnt.items() if torch.equal(first[name], weight)}
    assert not {name for name in still if ".blocks." in name and name.endswith("weight")}
    with pytest.raises(PipelineError, match=r"finetune\.freeze_layers: 9 layers cannot be frozen in a stack of 2"):
        _with(tmp_path / "run", freeze_layers=9)
    with pytest.raises(PipelineError, match=r"finetune\.lora_rank: a rank of 32 is not below"):
        _with(tmp_path / "run", lora_rank=32)
    with pytest.raises(PipelineError, match=r"finetune\.lora_rank: strategy tensor_parallel"):
        _with(tmp_path / "run", strategy="tensor_parallel")


def test_a_model_of_which_nothing_learns_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here(
        tmp_path / "run",
        monkeypatch,
        "classification",
        kinds_of_sentences(),
        steps=6,
        model={"preset": "small-encoder-decoder", "encoder_layers": 2, "decoder_layers": 2},
        pretrain={"objective": "span_corruption"},
        finetune={"lora_rank": 2, "freeze_layers": 2},
    )
    with pytest.raises(PipelineError, match=r"finetune\.freeze_layers: of classification's model nothing is left"):
        materials(load_params(), "classification", from_scratch=False)
    materials(load_params(), "classification", from_scratch=True)


def _with(root: Path, **changes: Any) -> None:
    params = load_params()
    section = params.finetune.model_copy(update=changes)
    materials(params.model_copy(update={"finetune": section}), "classification", from_scratch=False)


def test_one_label_is_no_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"text": text, "label": "all"} for text in sentences()[:100]]
    here(tmp_path / "run", monkeypatch, "classification", rows, steps=5)
    with pytest.raises(PipelineError, match="all training records have the label 'all'"):
        finetune(load_params(), "classification", from_scratch=True)
    Path("data/tokens/classification/labels.json").unlink()
    with pytest.raises(PipelineError, match="run the tokenize stage again"):
        finetune(load_params(), "classification", from_scratch=True)


def test_the_report_of_a_training_counts_what_was_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"text": " ".join(sentences()[n : n + 5]), "label": "ab"[n % 2]} for n in range(100)]
    here(tmp_path / "run", monkeypatch, "classification", rows, steps=5)
    finetune(load_params(), "classification", from_scratch=True)
    assert read_json(Path("models/classification-scratch/training.json"))["cut"] == {"source": 60, "target": 0}
    assert json.loads(Path("data/tokens/classification/labels.json").read_text()) == ["a", "b"]
