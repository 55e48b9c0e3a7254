"""Likelihoods equal those of one token after another, without batches; answers' probabilities are their own."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import EOS, SPECIAL, lively, model, reader, sentences, write_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers

from lightning_modules.answer_scores import confident_answers, target_likelihoods
from lightning_modules.model_folder import save_model
from lightning_modules.text_to_text import TextToText
from lightning_modules.transformer.heads import Classifier

SOURCES = [f"question: {text} context: {' '.join(sentences()[:3])}" for text in sentences()[:14]]
TARGETS = [*sentences()[20:32], "", "ä 漢字 🙂"]


def answering(root: Path, made: Any) -> TextToText:
    folder = root / "model"
    folder.mkdir()
    save_model(folder, made, write_tokenizer(root / "tokenizer"), {"max_source_tokens": 90, "max_target_tokens": 12})
    return TextToText.load(folder)


def nats(writer: TextToText, source: str, ids: list[int]) -> float:
    """-ln p(ids | source), by reading the source and one token at a time."""
    with torch.inference_mode():
        state = writer.model.begin(torch.tensor(writer.source_ids([source])))
        total, last = 0.0, writer.model.config.bos_id
        for token in ids:
            scores_V = writer.model.logits(writer.model.step(torch.tensor([[last]]), state)[0, -1])
            total -= float(scores_V.log_softmax(dim=-1)[token])
            last = token
    return total


@pytest.mark.parametrize("shape", [{}, {"architecture": "decoder"}], ids=["encoder-decoder", "decoder"])
def test_likelihoods_are_those_of_one_token_after_another(tmp_path: Path, shape: dict[str, Any]) -> None:
    writer = answering(tmp_path, lively(**shape))
    found = target_likelihoods(writer, SOURCES, TARGETS)
    for number, (source, target) in enumerate(zip(SOURCES, TARGETS, strict=True)):
        ids = [*writer.tokenizer.encode(target, add_special_tokens=False).ids, EOS]
        assert found.nats_N[number] == pytest.approx(nats(writer, source, ids), rel=1e-4)
        assert (found.tokens_N[number], found.bytes_N[number]) == (len(ids), len(target.encode()))
    assert not found.unknown_N.any()


def test_what_the_tokenizer_does_not_know_is_counted(tmp_path: Path) -> None:
    """Each word of which is one token then, however long it is: bits per byte look good."""
    words = Tokenizer(models.WordLevel({**{name: n for n, name in enumerate(SPECIAL)}, "the": 80}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    writer = answering(tmp_path, lively())
    unknowing = TextToText(writer.model, words, 90, writer.decoding)
    found = target_likelihoods(unknowing, SOURCES[:3], ["the the", "the incomprehensibilities of the", ""])
    assert found.unknown_N.tolist() == [0, 2, 0]
    assert found.tokens_N.tolist() == [3, 5, 1]
    assert found.bytes_N.tolist() == [7, 32, 0]


@pytest.mark.parametrize("shape", [{}, {"architecture": "decoder"}], ids=["encoder-decoder", "decoder"])
def test_where_learned_positions_end_the_measured_text_does_too(tmp_path: Path, shape: dict[str, Any]) -> None:
    writer = answering(tmp_path, lively(positions="learned", **shape))
    long = " ".join(sentences()[:40])
    found = target_likelihoods(writer, SOURCES[:2], [long, "short"])
    room = writer.model.config.max_length - (len(writer.source_ids(SOURCES[:1])[0]) if shape else 0)
    assert found.tokens_N.tolist()[0] == room
    kept = writer.tokenizer.encode(long, add_special_tokens=False).ids[: room - 1]
    assert found.bytes_N[0] == len(writer.tokenizer.decode(kept).encode())
    assert found.nats_N[0] == pytest.approx(nats(writer, SOURCES[0], [*kept, EOS]), rel=1e-4)


def test_a_written_answers_probability_is_its_own(tmp_path: Path) -> None:
    writer = answering(tmp_path, lively())
    found = confident_answers(writer, SOURCES, lambda count: None)
    assert [answer for answer, _ in found] == writer.generate(SOURCES)
    for source, (answer, probability) in zip(SOURCES, found, strict=True):
        ids = [*writer.tokenizer.encode(answer, add_special_tokens=False).ids, EOS]
        assert probability == pytest.approx(math.exp(-nats(writer, source, ids)), rel=1e-3, abs=1e-12)


@pytest.mark.parametrize("kind", ["span reader", "classifier"])
def test_models_that_do_not_write_tell_what_they_answer_and_how_sure_they_are(tmp_path: Path, kind: str) -> None:
    labels = ("yes", "no", "perhaps")
    made = reader() if kind == "span reader" else Classifier(model(architecture="encoder"), labels)
    chooser, told = answering(tmp_path, made), []
    found = confident_answers(chooser, SOURCES, told.append)
    assert sum(told) == len(SOURCES)
    assert [answer for answer, _ in found] == chooser.generate(SOURCES)
    assert all(0 < probability <= 1 for _, probability in found)
    if kind == "classifier":
        assert all(probability >= 1 / 3 for _, probability in found)
