"""Texts in, texts out: a model that has learned something says it, in order, whatever the batches."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import EOS, config, encoded, lively, model, reader, sentences, tokenizer, write_store, write_tokenizer
from torch.optim import AdamW

from lightning_modules.batching import Batch, make_batch, pad, source_tensors
from lightning_modules.decoding import Decoding, decode
from lightning_modules.errors import PipelineError
from lightning_modules.loss import batch_loss
from lightning_modules.model_folder import Model, new_model, save_model
from lightning_modules.text_pairs import SpanPairs
from lightning_modules.text_to_text import TextToText
from lightning_modules.transformer.heads import Classifier, SpanReader
from lightning_modules.windows import CONTEXT
from stages.tokenize import place

TEXTS = [*sentences()[:40], "", "ä 漢字 🙂", "word " * 200]


MADE: dict[str, Callable[[], Any]] = {
    "encoder-decoder": lively,
    "decoder": lambda: lively(architecture="decoder", positions="learned"),
    "span reader": lambda: reader(positions="learned"),
    "classifier": lambda: classifier(),
}


def classifier() -> Classifier:
    torch.manual_seed(1)
    made = Classifier(model(architecture="encoder", positions="learned"), [f"label {n}" for n in range(30)])
    torch.nn.init.normal_(made.classes.weight)
    return made.eval()


def folder_of(root: Path, made: Model, limits: dict[str, Any]) -> Path:
    folder = root / "model"
    folder.mkdir()
    save_model(folder, made, write_tokenizer(root / "tokenizer"), limits)
    return folder


def used(folder: Path, **usage: Any) -> None:
    """Writes how the model is used into its config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | usage))


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


def test_what_is_no_list_of_texts_is_refused(folder: Path) -> None:
    answering = TextToText.load(folder)
    with pytest.raises(TypeError, match=r"^a list of texts is wanted, not a text by itself: put it in \[ \]$"):
        answering.generate("Open the door.")
    for wrong, kind in ((None, "NoneType"), (["a"], "list"), (1.5, "float")):
        with pytest.raises(TypeError, match=rf"^texts\[1\] is of type {kind}: a text \(str\) is wanted$"):
            answering.generate(["a", wrong])  # type: ignore[list-item]


WRITERS = ("encoder-decoder", "decoder")


@pytest.mark.parametrize("kind", WRITERS)
def test_the_longest_sources_are_written_for_first(folder: Path) -> None:
    writer, read = TextToText.load(folder), list[tuple[int, int]]()
    begin = writer.model.begin

    def begun(source_BS: torch.Tensor, *rest: Any) -> Any:
        read.append((source_BS.shape[0], source_BS.shape[1]))
        return begin(source_BS, *rest)

    writer.model.begin = begun
    writer.generate(TEXTS, batch_tokens=100)
    lengths = [length for _, length in read]
    assert len(set(lengths)) > 5
    assert lengths == sorted(lengths, reverse=True)
    needed = sorted((min(len(ids) + 1, 30) for ids in encoded(TEXTS)), reverse=True)
    assert lengths[0] == needed[0]
    assert sum(count * length for count, length in read) < 1.2 * sum(needed)  # of padding there is little


@pytest.mark.parametrize("keep_end", [False, True])
@pytest.mark.parametrize("kind", WRITERS)
def test_an_answer_is_what_the_model_writes_for_the_cut_and_ended_source(
    tmp_path: Path, kind: str, keep_end: bool
) -> None:
    limits = {"max_source_tokens": 30, "max_target_tokens": 12} | ({"keep_end": True} if keep_end else {})
    writer = TextToText.load(folder_of(tmp_path, MADE[kind](), limits))
    sources = pad([[*(ids[-29:] if keep_end else ids[:29]), EOS] for ids in encoded(TEXTS)], 0)
    source_BS, real_BS = source_tensors(sources, 0, pad_left=kind == "decoder")

    def wanted(decoding: Decoding) -> list[str]:
        found = decode(MADE[kind](), source_BS, real_BS, decoding)
        assert max(len(texts[0].ids) for texts in found) == decoding.max_tokens
        return [text.strip() for text in tokenizer().decode_batch([texts[0].ids for texts in found])]

    assert writer.generate(TEXTS) == wanted(Decoding(12))
    assert writer.cut == sum(len(ids) > 29 for ids in encoded(TEXTS)) > 0
    searched = Decoding(8, beams=3)
    assert writer.generate(TEXTS, decoding=searched) == wanted(searched) != wanted(Decoding(8))
    used(tmp_path / "model", decoding={"beams": 3, "max_tokens": 8})
    assert TextToText.load(tmp_path / "model").generate(TEXTS) == wanted(searched)
    used(tmp_path / "model", decoding={"bams": 3})
    with pytest.raises(PipelineError, match=r"config\.json: decoding: .*bams"):
        TextToText.load(tmp_path / "model")


def test_a_classifier_gives_the_most_probable_label_and_all_probabilities(tmp_path: Path) -> None:
    made = classifier()
    naming = TextToText.load(folder_of(tmp_path, made, {"max_source_tokens": 30, "max_target_tokens": 12}))
    scores = naming.scores(TEXTS)
    for text, answer, score, ids in zip(TEXTS, naming.generate(TEXTS), scores, encoded(TEXTS), strict=True):
        with torch.inference_mode():
            alone = made(torch.tensor([[*ids[:29], EOS]])).softmax(-1)[0].tolist()
        assert list(score) == list(made.labels)
        assert list(score.values()) == pytest.approx(alone, abs=1e-5), text
        assert answer == max(score, key=score.__getitem__)


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


def test_what_was_learned_by_heart_is_pointed_at_in_the_texts_own_characters(tmp_path: Path) -> None:
    """In every second of twelve long sources the answer is a number; in the others there is none."""
    learner = SpanReader(new_model(config(architecture="encoder", positions="relative"), seed=0))  # type: ignore[arg-type]
    words = " ".join(sentences()[:30]).replace("7", "").split()
    texts = [f"question: how many?{CONTEXT}{' '.join(words[n : n + 12 + 5 * n])}" for n in range(12)]
    answers = ["(77,\xa07)" if n % 2 else "" for n in range(12)]
    middles = [len(text) * 2 // 3 for text in texts]
    texts = [f"{t[:at]} {a} {t[at:]}" for t, a, at in zip(texts, answers, middles, strict=True)]
    for split in ("source", "place"):
        found = [tokenizer().encode(text, add_special_tokens=False) for text in texts]
        places = [place(t, a, "", e.offsets) for t, a, e in zip(texts, answers, found, strict=True)]
        write_store(tmp_path / split, [e.ids for e in found] if split == "source" else places)
    write_store(tmp_path / "target", [[7]] * 12)
    pairs = SpanPairs(tmp_path, learner.config, 4000, 40, 12, 1)
    assert (pairs.missing, pairs.unanswerable) == (0, 6)
    assert len(pairs.windows_N4) > 16
    learned(learner, next(iter(pairs.validation_batches(0, 1))), 80)
    folder = folder_of(tmp_path, learner, {"max_source_tokens": 40, "max_target_tokens": 12})
    assert all(TextToText.load(folder).generate(texts))
    used(folder, threshold=0.0)
    pointing = TextToText.load(folder)
    assert pointing.generate(texts) == answers
    for text, answer, span in zip(texts, answers, pointing.spans(texts), strict=True):
        assert text[span.begin : span.end] == span.text == answer
        assert span.probability > 0.5


def test_a_model_that_is_not_fine_tuned_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="no fine-tuned model"):
        TextToText.load(folder_of(tmp_path, model(), {}))


def test_an_encoder_that_neither_writes_nor_points_is_refused(tmp_path: Path) -> None:
    encoder, limits = model(architecture="encoder"), {"max_source_tokens": 30, "max_target_tokens": 12}
    with pytest.raises(PipelineError, match="an encoder that was not fine-tuned answers nothing"):
        TextToText.load(folder_of(tmp_path, encoder, limits))


@pytest.mark.parametrize("lacking", ["max_source_tokens", "max_target_tokens"])
def test_a_limit_that_is_missing_is_named_with_its_file(tmp_path: Path, lacking: str) -> None:
    limits = {"max_source_tokens": 30, "max_target_tokens": 12}
    del limits[lacking]
    with pytest.raises(PipelineError, match=rf"model/config\.json: limits has no '{lacking}'"):
        TextToText.load(folder_of(tmp_path, model(), limits))
