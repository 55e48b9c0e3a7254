"""Texts in, texts out: a model that has learned something says it, in order, whatever the batches."""

from pathlib import Path

import pytest
import torch
from tiny import EOS, config, encoded, lively, model, sentences, source_mask, tokenizer, write_tokenizer
from torch.optim import AdamW

from lightning_modules.batching import pad
from lightning_modules.decoding import greedy
from lightning_modules.errors import PipelineError
from lightning_modules.loss import sequence_loss
from lightning_modules.model_folder import new_model, save_model
from lightning_modules.text_to_text import TextToText

TEXTS = [*sentences()[:40], "", "ä 漢字 🙂", "word " * 200]


def folder_of(root: Path, made: torch.nn.Module, limits: dict[str, int]) -> Path:
    folder = root / "model"
    folder.mkdir()
    save_model(folder, made, write_tokenizer(root / "tokenizer"), limits)  # type: ignore[arg-type]
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return folder_of(tmp_path, lively(), {"max_source_tokens": 30, "max_target_tokens": 12})


def test_answers_come_in_order_whatever_the_size_of_batches(folder: Path) -> None:
    writer = TextToText.load(folder)
    answers = writer.generate(TEXTS)
    assert len(set(answers)) > 5
    for batch_tokens in (1, 50, 333):
        assert writer.generate(TEXTS, batch_tokens) == answers
    assert writer.generate(list(reversed(TEXTS))) == list(reversed(answers))
    assert [writer.generate([text])[0] for text in TEXTS[-4:]] == answers[-4:]


def test_an_answer_is_greedy_decoding_of_the_cut_and_ended_source(folder: Path) -> None:
    sources = [[*ids[:29], EOS] for ids in encoded(TEXTS)]
    source_BS = torch.from_numpy(pad(sources, 0))
    ids = greedy(lively(), source_BS, source_mask(source_BS), 12)
    assert max(map(len, ids)) == 12
    assert TextToText.load(folder).generate(TEXTS) == [text.strip() for text in tokenizer().decode_batch(ids)]


def test_done_counts_every_text_once_and_no_texts_are_no_work(folder: Path) -> None:
    writer, counts = TextToText.load(folder), []
    writer.generate(TEXTS, batch_tokens=60, done=counts.append)
    assert sum(counts) == len(TEXTS)
    assert len(counts) > 3
    assert writer.generate([], done=counts.append) == []


def test_what_was_learned_by_heart_is_said(tmp_path: Path) -> None:
    """Six sentences, each the answer to the one before: training, saving, loading, decoding joined."""
    torch.manual_seed(0)
    texts, learner = list(sentences()[:6]), new_model(config(), seed=0)
    answers = [*texts[1:], texts[0]]
    source_BS, target_BT = (
        torch.from_numpy(pad([[*ids[:40], EOS] for ids in encoded(side)], 0)) for side in (texts, answers)
    )
    optimizer = AdamW(learner.parameters(), lr=5e-3)
    for _ in range(150):
        optimizer.zero_grad()
        loss, tokens = sequence_loss(learner, source_BS, target_BT, source_mask(source_BS), 0.0)
        (loss / tokens).backward()
        optimizer.step()
    writer = TextToText.load(folder_of(tmp_path, learner, {"max_source_tokens": 41, "max_target_tokens": 60}))
    assert writer.generate(texts) == [tokenizer().decode(ids[:40]).strip() for ids in encoded(answers)]


def test_a_model_that_is_not_fine_tuned_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="no fine-tuned model"):
        TextToText.load(folder_of(tmp_path, model(), {}))
