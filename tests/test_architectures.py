"""An encoder, and a decoder that is a published checkpoint to go on from, through the whole pipeline, by `dvc repro`.

test_end_to_end.py has the encoder–decoder, test_pretrain.py what decoders learn from scratch.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
from repository_copy import ROOT, copy_of_repository, end_all_in, shell
from two_hands import GPT2

from flows.overrides import overridden
from lightning_modules.interop.huggingface import to_hugging_face
from lightning_modules.model_folder import load_model, read_config

SMALL = {
    "sources.remote": {},
    "sources.local": {"manuals": {"path": "manuals.txt"}, "questions": {"path": "questions.jsonl"}},
    "data": {
        "pretraining": [{"source": "manuals", "reader": "text", "split": "line"}],
        "question_answering": [
            {
                "source": "questions",
                "reader": "table",
                "columns": {"question": "question", "context": "context", "answer": "answer"},
            }
        ],
    },
    "tasks": {
        "question_answering": {"steps": 20, "learning_rate": 1e-3, "max_source_tokens": 100, "max_target_tokens": 20}
    },
    "tokenizer.vocab_size": 600,
    "pretrain.sequence_length": 32,
    "pretrain.steps": 30,
    "pretrain.warmup_steps": 10,
    "pretrain.threads": 1,
    "finetune.warmup_steps": 5,
    "evaluate.max_records": 20,
    "evaluate.bootstrap_samples": 100,
    "leakage.max_share": 1.0,  # so few words make the same sentences again
}
SHAPE = {"d_model": 32, "d_ff": 64, "max_length": 160, "start_from": None}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of this repository, with sentences, and questions for the word after another."""
    root = copy_of_repository(tmp_path_factory.mktemp("architectures"))
    (root / "manuals.txt").write_text("\n".join(tiny.sentences()))
    with (root / "questions.jsonl").open("w") as file:
        for sentence in tiny.sentences()[:400]:
            words = sentence.split()
            row = {"question": f"What comes after {words[0]}?", "context": sentence, "answer": words[1]}
            file.write(json.dumps(row) + "\n")
    yield root
    end_all_in(root)


def run(root: Path, architecture: str, changes: dict[str, object]) -> None:
    """`dvc repro`, and what is to be there after it."""
    text = overridden((ROOT / "params.yaml").read_text(), SMALL | changes)
    (root / "params.yaml").write_text(text)
    shell(root, "dvc repro report")
    scores = json.loads((root / "reports/metrics.json").read_text())["question_answering"]["f1"]
    assert 0 <= scores["pretrained"] <= 100
    config = read_config(root / "models/question_answering")
    assert config["transformer"]["architecture"] == architecture
    assert config["reads_spans"] == (architecture == "encoder")
    assert "<svg" in (root / "reports/tasks/question_answering/attention.svg").read_text()


def test_an_encoder_that_reads_characters_and_points(root: Path) -> None:
    fields = {"architecture": "encoder", "embeddings": "characters", "tied_output": False}
    model = {"preset": "small-encoder-decoder"} | SHAPE | fields
    run(root, "encoder", {"model": model, "pretrain.objective": "masked_lm"})
    assert "up to date" in shell(root, "dvc repro report")


def test_what_cannot_work_is_one_line_before_any_work(root: Path) -> None:
    wrong = {"model": {"preset": "small-decoder"} | SHAPE, "pretrain.objective": "masked_lm"}
    (root / "params.yaml").write_text(overridden((ROOT / "params.yaml").read_text(), SMALL | wrong))
    output = shell(root, "python -m stages.params", status=1)
    assert re.fullmatch(r"error: params.yaml:\d+: pretrain.objective: masked_lm is not for .*decoder.*\n", output)


def test_a_published_checkpoint_is_brought_in_and_fine_tuned(root: Path) -> None:
    published = root / "published"
    to_hugging_face(tiny.model(**GPT2, max_length=160)).save_pretrained(published)
    tiny.write_tokenizer(published)
    said = shell(root, "python -m lightning_modules.interop.huggingface import published imported/small")
    digest = re.findall(r"sha256: (\w{64})", said)[0]
    model = {"preset": None, "start_from": {"path": "imported/small", "sha256": digest}}
    run(root, "decoder", {"model": model, "pretrain.steps": 0, "pretrain.warmup_steps": 0})
    assert (root / "data/tokenizer/tokenizer.json").read_text() == (root / "imported/small/tokenizer.json").read_text()
    before, after = (load_model(root / folder).state_dict() for folder in ("imported/small", "models/pretrained"))
    assert all(before[name].equal(after[name]) for name in before)
    assert load_model(root / "models/question_answering").config.positions == "learned"
