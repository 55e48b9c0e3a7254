"""Pre-training and fine-tuning of each architecture: the stages in this process, what they show, what they refuse."""

from pathlib import Path
from typing import Any

import pytest
import torch
from stage_runs import workspace
from tiny import EOS, lively, model, read_json, rows_split, sentences

from lightning_modules.errors import PipelineError
from lightning_modules.model_folder import load_model
from lightning_modules.text_to_text import TextToText
from lightning_modules.transformer.heads import SpanReader
from lightning_modules.transformer.model import Decoder, Encoder, EncoderDecoder
from stages.finetune import finetune
from stages.params import load_params
from stages.pretrain import guesses, pretrain

FIRST, REST = 4, 32  # rows that are shown, of 32 tokens each


def written_on(ours: Any, source: list[int], begun: list[int], most: int) -> list[int]:
    """The most probable tokens after `begun`, everything read again for each; until </s> or `most`."""
    written = list(begun)
    with torch.no_grad():
        while len(written) < len(begun) + most:
            hidden = ours(torch.tensor([source], dtype=torch.long), torch.tensor([written]))
            token = int(ours.logits(hidden[0, -1]).argmax())
            if token == EOS:
                break
            written.append(token)
    return written[len(begun) :]


@pytest.mark.parametrize(
    ("architecture", "objective"),
    [
        ("encoder_decoder", "span_corruption"),
        ("decoder", "span_corruption"),
        ("decoder", "denoising"),
        ("decoder", "prefix_lm"),
    ],
)
def test_what_is_shown_of_a_writer_is_greedy_decoding(tmp_path: Path, architecture: str, objective: str) -> None:
    ours = lively(architecture=architecture)
    batch = next(rows_split(tmp_path, objective=objective, architecture=architecture).validation_batches(0, 1))
    read, hidden, guessed = guesses(ours, batch)
    assert read == batch.source_BS[:FIRST].tolist()
    assert hidden == batch.target_BT[:FIRST].tolist()
    most = batch.target_BT.shape[1]
    sources = [[token for token in row if token] for row in read]
    assert guessed == [written_on(ours, source, [1], most) for source in sources]


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_what_is_shown_of_a_language_model_goes_on_from_the_first_half(tmp_path: Path, positions: str) -> None:
    shape = {"architecture": "decoder", "positions": positions, "max_length": REST}
    ours = lively(**shape)
    batch = next(rows_split(tmp_path, objective="causal_lm", **shape).validation_batches(0, 1))
    assert batch.source_BS.shape[1] == 0
    read, hidden, guessed = guesses(ours, batch)
    rows = batch.target_BT[:FIRST].tolist()
    assert read == [[1, *row[:16]] for row in rows]
    assert hidden == [row[16:] for row in rows]
    assert guessed == [written_on(ours, [], begun, 16) for begun in read]
    assert len({tuple(row) for row in guessed}) > 1


def test_what_is_shown_of_an_encoder_are_its_best_guesses_at_what_is_hidden(tmp_path: Path) -> None:
    ours = model(architecture="encoder")
    batch = next(rows_split(tmp_path, objective="masked_lm", architecture="encoder").validation_batches(0, 1))
    read, hidden, guessed = guesses(ours, batch)
    assert read == batch.source_BS[:FIRST].tolist()
    for row, (source_S, target_T) in enumerate(zip(batch.source_BS[:FIRST], batch.target_BT[:FIRST], strict=True)):
        columns = [column for column, token in enumerate(target_T.tolist()) if token]
        with torch.no_grad():
            logits_SV = ours.logits(ours(source_S[None]))[0]
        assert hidden[row] == target_T[columns].tolist()
        assert guessed[row] == [int(logits_SV[column].argmax()) for column in columns]
    assert [len(row) for row in hidden] == [6] * FIRST  # 20 % of 32 tokens


SHORT = {"warmup_steps": 5, "checkpoint_every": 20, "validate_every": 10}
TASK = "question_answering"
SHAPES: dict[str, tuple[dict[str, Any], Any, int]] = {  # with the steps of each training
    "encoder": ({"preset": "small-encoder"}, "masked_lm", 40),
    "decoder": ({"preset": "small-decoder"}, "causal_lm", 40),
    "prefix decoder": (
        {"preset": "small-decoder", "bidirectional_prefix": True, "positions": "learned"},
        {"prefix_lm": 2, "denoising": 1},
        40,
    ),
    "encoder-decoder of characters": (
        {"embeddings": "characters", "tied_output": False},
        {"denoising": 1, "span_corruption": 1},
        16,
    ),
}


def here(root: Path, monkeypatch: pytest.MonkeyPatch, model: dict[str, Any], objective: Any, steps: int) -> None:
    """Makes a workspace with one task, question answering, the present folder."""
    packing = "joined" if model.get("preset") == "small-decoder" else "best_fit"  # decoders learn denoising here, too
    pretraining = {"objective": objective, "packing": packing, "whole_words": True, "steps": steps, **SHORT}
    limits = {"max_source_tokens": 24, "max_target_tokens": 8}
    workspace(root, TASK, model=model, pretrain=pretraining, finetune=SHORT, task={"steps": steps, **limits})
    monkeypatch.chdir(root)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nobody answers there


@pytest.mark.parametrize("shape", SHAPES)
def test_an_architecture_is_pre_trained_then_fine_tuned_and_answers(
    shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here(tmp_path / "run", monkeypatch, *SHAPES[shape])
    params = load_params()
    pretrain(params)
    pretrained = load_model(Path("models/pretrained"))
    made = {"encoder": Encoder, "decoder": Decoder, "encoder_decoder": EncoderDecoder}
    assert type(pretrained) is made[params.model.config(vocab_size=600).architecture]
    if "characters" in shape:
        assert pretrained.embedding.characters_VC[5:].any(dim=1).all(), "every token is spelled"  # type: ignore[union-attr]
    for from_scratch, name in ((False, TASK), (True, f"{TASK}-scratch")):
        finetune(params, TASK, from_scratch)
        folder = Path("models", name)
        finetuned = load_model(folder)
        assert type(finetuned) is (SpanReader if shape == "encoder" else type(pretrained))
        curve = (folder / "curve.csv").read_text().splitlines()
        assert len(curve) > SHAPES[shape][2] / 2
        assert read_json(folder / "training.json")["validation_loss"] < float(curve[1].split(",")[1])
        answers = TextToText.load(folder).generate(sentences()[300:310])
        assert len(answers) == 10
        if shape == "encoder":
            assert any(answers)
            assert all(answer in text for answer, text in zip(answers, sentences()[300:310], strict=True))


@pytest.mark.parametrize(
    ("model", "objective", "needed"),
    [
        # Of 32 tokens 5 are hidden, in 2 spans: sentinels on both sides, and an </s> on each.
        ({"preset": "small-decoder"}, {"causal_lm": 1000, "span_corruption": 1}, 32 + 2 * 2 + 2),
        ({"preset": "small-decoder"}, {"causal_lm": 1000, "denoising": 1}, 2 * (32 + 1)),
        ({"preset": "small-encoder-decoder"}, "denoising", 32 + 1),
    ],
)
def test_positions_that_end_before_the_longest_sequence_are_refused_whatever_comes_first(
    model: dict[str, Any], objective: Any, needed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = model | {"positions": "learned", "max_length": needed - 1}
    here(tmp_path / "short", monkeypatch, short, objective, steps=5)
    with pytest.raises(PipelineError, match=rf"pretrain\.sequence_length 32 .* up to {needed} tokens.* {needed - 1}: "):
        pretrain(load_params())
    assert not Path("models").exists()
    here(tmp_path / "enough", monkeypatch, short | {"max_length": needed}, objective, steps=5)
    pretrain(load_params())
    here(tmp_path / "others", monkeypatch, short | {"positions": "rotary"}, objective, steps=5)
    pretrain(load_params())
