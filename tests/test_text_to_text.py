"""Texts in, texts out: a model that has learned something says it, in order, whatever the batches."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import EOS, config, encoded, lively, model, reader, sentences, tokenizer, write_tokenizer
from torch.optim import AdamW

from lightning_modules.batching import Batch, make_batch, pad, source_tensors
from lightning_modules.decoding import best_spans, greedy
from lightning_modules.errors import PipelineError
from lightning_modules.loss import batch_loss
from lightning_modules.model_folder import Model, new_model, save_model
from lightning_modules.text_to_text import TextToText
from lightning_modules.transformer.heads import SpanReader

TEXTS = [*sentences()[:40], "", "ä 漢字 🙂", "word " * 200]


MADE: dict[str, Callable[[], Any]] = {
    "encoder-decoder": lively,
    "decoder": lambda: lively(architecture="decoder", positions="learned"),
    "span reader": lambda: reader(positions="learned"),
}


def folder_of(root: Path, made: Model, limits: dict[str, int]) -> Path:
    folder = root / "model"
    folder.mkdir()
    save_model(folder, made, write_tokenizer(root / "tokenizer"), limits)
    return folder


@pytest.fixture(params=MADE)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(tmp_path: Path, kind: str) -> Path:
    return folder_of(tmp_path, MADE[kind](), {"max_source_tokens": 30, "max_target_tokens": 12})


def test_answers_come_in_order_whatever_the_size_of_batches(folder: Path) -> None:
    writer = TextToText.load(folder)
    answers = writer.generate(TEXTS)
    assert len(set(answers)) > 5
    for batch_tokens in (1, 50, 333):
        assert writer.generate(TEXTS, batch_tokens) == answers
    assert writer.generate(list(reversed(TEXTS))) == list(reversed(answers))
    assert [writer.generate([text])[0] for text in TEXTS[-4:]] == answers[-4:]


def test_an_answer_is_what_the_model_gives_for_the_cut_and_ended_source(folder: Path, kind: str) -> None:
    sources = pad([[*ids[:29], EOS] for ids in encoded(TEXTS)], 0)
    source_BS, real_BS = source_tensors(sources, 0, pad_left=kind == "decoder")
    decode = best_spans if kind == "span reader" else greedy
    ids = decode(MADE[kind](), source_BS, real_BS, 12)
    assert max(map(len, ids)) == 12
    assert TextToText.load(folder).generate(TEXTS) == [text.strip() for text in tokenizer().decode_batch(ids)]


def test_done_counts_every_text_once_and_no_texts_are_no_work(folder: Path) -> None:
    writer, counts = TextToText.load(folder), []
    writer.generate(TEXTS, batch_tokens=60, done=counts.append)
    assert sum(counts) == len(TEXTS)
    assert len(counts) > 3
    assert writer.generate([], done=counts.append) == []


def learned(made: Any, batch: Batch, steps: int) -> Any:
    optimizer = AdamW(made.parameters(), lr=5e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        loss, predictions = batch_loss(made, batch, 0.0)
        (loss / predictions).backward()
        optimizer.step()
    return made


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"architecture": "decoder", "positions": "rotary"},
        {"architecture": "decoder", "positions": "learned", "bidirectional_prefix": True},
    ],
    ids=["encoder-decoder", "decoder", "prefix decoder"],
)
def test_what_was_learned_by_heart_is_said(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Six sentences, each the answer to the one before: training, saving, loading, decoding joined."""
    texts, learner = list(sentences()[:6]), new_model(config(**changes), seed=0)
    answers = [*texts[1:], texts[0]]
    sides = [pad([[*ids[:40], EOS] for ids in encoded(side)], 0) for side in (texts, answers)]
    learned(learner, make_batch(*sides, learner.config), 150)
    writer = TextToText.load(folder_of(tmp_path, learner, {"max_source_tokens": 41, "max_target_tokens": 60}))
    assert writer.generate(texts) == [tokenizer().decode(ids[:40]).strip() for ids in encoded(answers)]


def test_what_was_learned_by_heart_is_pointed_at(tmp_path: Path) -> None:
    """Six sentences of different lengths, and of each another stretch."""
    texts = list(sentences()[:6])
    learner = SpanReader(new_model(config(architecture="encoder", positions="learned"), seed=0))  # type: ignore[arg-type]
    sources = [[*ids[:40], EOS] for ids in encoded(texts)]
    assert len(set(map(len, sources))) > 3
    spans = [(number, number + number % 3) for number in range(6)]
    learned(learner, make_batch(pad(sources, 0), torch.tensor(spans).numpy(), learner.config), 100)
    writer = TextToText.load(folder_of(tmp_path, learner, {"max_source_tokens": 41, "max_target_tokens": 5}))
    wanted = [source[first : last + 1] for source, (first, last) in zip(sources, spans, strict=True)]
    assert writer.generate(texts) == [text.strip() for text in tokenizer().decode_batch(wanted)]


def test_a_model_that_is_not_fine_tuned_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="no fine-tuned model"):
        TextToText.load(folder_of(tmp_path, model(), {}))


def test_an_encoder_that_neither_writes_nor_points_is_refused(tmp_path: Path) -> None:
    encoder, limits = model(architecture="encoder"), {"max_source_tokens": 30, "max_target_tokens": 12}
    with pytest.raises(PipelineError, match="holds an encoder that was not fine-tuned"):
        TextToText.load(folder_of(tmp_path, encoder, limits))
