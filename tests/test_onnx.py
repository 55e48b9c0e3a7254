"""onnxruntime's numbers are ours, for every part a model can have, padding included; else nothing is left."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import tiny
import torch
from torch import Tensor

from lightning_modules.errors import PipelineError
from lightning_modules.interop.onnx import export, main
from lightning_modules.model_folder import save_model
from lightning_modules.vocabulary import token_bytes

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # torch's, about itself
REPOSITORY = Path(__file__).parents[1]
ROWS = [[*ids, tiny.EOS] for ids in tiny.encoded(tiny.sentences()[:9])]
ONE = {"encoder_layers": 1, "decoder_layers": 1}
BATCHES = [ROWS[:1], ROWS[1:4], ROWS, [ROWS[0][:1]], [[token for row in ROWS for token in row][:128]]]


def exported(root: Path, model: Any) -> Path:
    (root / "model").mkdir()
    save_model(root / "model", model, tiny.write_tokenizer(root / "tokenizer"), {})
    export(root / "model", root / "exported")
    assert (root / "exported" / "tokenizer.json").read_bytes() == (root / "model" / "tokenizer.json").read_bytes()
    return root / "exported"


def padded(rows: list[list[int]], left: bool) -> tuple[Tensor, Tensor]:
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for row, given in zip(ids, rows, strict=True):
        row[-len(given) if left else 0 : None if left else len(given)] = torch.tensor(given)
    return ids, ids != 0


class Graph:
    """One file, opened without our code."""

    def __init__(self, path: Path) -> None:
        onnx.checker.check_model(path, full_check=True)
        alone = onnxruntime.SessionOptions()
        alone.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(path, alone, providers=["CPUExecutionProvider"])

    def __call__(self, **given: Tensor) -> Tensor:
        return torch.from_numpy(self.session.run(None, {name: value.numpy() for name, value in given.items()})[0])

    def shapes(self) -> dict[str, list[Any]]:
        return {node.name: node.shape for node in (*self.session.get_inputs(), *self.session.get_outputs())}


def close(theirs: Tensor, ours: Tensor) -> None:
    torch.testing.assert_close(theirs, ours, rtol=0.0, atol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize(
    "changes",
    [
        {
            "positions": "learned",
            "embedding_norm": True,
            "token_types": 2,
            "output_transform": True,
            "output_bias": True,
            "norm": "post",
            "activation": "gelu",
        },
        {"positions": "relative", "window": 5, "activation": "geglu_tanh"},
    ],
    ids=lambda changes: changes["positions"],
)
def test_an_encoders_logits(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = tiny.model(architecture="encoder", **ONE, **changes)
    graph = Graph(exported(tmp_path, model) / "model.onnx")
    sizes = ["batch", "length"]
    assert graph.shapes() == {"input_ids": sizes, "attention_mask": sizes, "logits": [*sizes, tiny.VOCAB_SIZE]}
    for rows in BATCHES:
        ids, real = padded(rows, left=False)
        theirs = graph(input_ids=ids, attention_mask=real.long())
        close(theirs[real], model.logits(model(ids, real))[real])


@torch.inference_mode()
@pytest.mark.parametrize(
    "changes",
    [
        {
            "positions": "rotary",
            "key_value_heads": 2,
            "qk_norm": True,
            "norm_type": "rms",
            "activation": "swiglu",
            "window": 9,
        },
        {"positions": "alibi", "embeddings": "characters", "tied_output": False, "bias": False},
    ],
    ids=lambda changes: changes["positions"],
)
def test_a_decoders_logits_with_padding_at_either_end(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = tiny.model(architecture="decoder", **ONE, **changes)
    if changes.get("embeddings") == "characters":
        model.embedding.spell(token_bytes(tiny.tokenizer()))
    graph = Graph(exported(tmp_path, model) / "model.onnx")
    for rows in BATCHES:
        alone = [model.logits(model(torch.tensor([row])[:, :0], torch.tensor([row])))[0] for row in rows]
        for left in (False, True):
            ids, real = padded(rows, left)
            theirs = graph(input_ids=ids, attention_mask=real.long())
            close(theirs[real], torch.cat(alone))


@torch.inference_mode()
def test_an_encoder_decoder_in_two_graphs(tmp_path: Path) -> None:
    model = tiny.model(**ONE, positions="relative", key_value_heads=1, norm="post")
    folder = exported(tmp_path, model)
    encoder, decoder = Graph(folder / "encoder.onnx"), Graph(folder / "decoder.onnx")
    assert encoder.shapes()["memory"] == ["batch", "length", 32]
    assert decoder.shapes()["memory"] == ["batch", "source_length", 32]
    assert decoder.shapes()["logits"] == ["batch", "length", tiny.VOCAB_SIZE]
    for rows in BATCHES:
        ids, real = padded(rows, left=False)
        target, _ = padded([[model.config.bos_id, *row[:3], *row] for row in reversed(rows)], left=False)
        memory = encoder(input_ids=ids, attention_mask=real.long())
        theirs = decoder(input_ids=target[:, :100], memory=memory, attention_mask=real.long())
        close(theirs, model.logits(model(ids, target[:, :100], real)))


@torch.inference_mode()
def test_a_reader_of_spans_gives_its_scores(tmp_path: Path) -> None:
    model = tiny.reader(**ONE)
    graph = Graph(exported(tmp_path, model) / "model.onnx")
    ids, real = padded(ROWS, left=False)
    theirs = graph(input_ids=ids, attention_mask=real.long())
    assert theirs.shape == (len(ROWS), 2, ids.shape[1])
    close(theirs.mT[real], model(ids, real).mT[real])
    assert (theirs.mT[~real] < -1e29).all()


def test_numbers_that_differ_are_refused_with_the_largest_and_nothing_is_left(tmp_path: Path) -> None:
    model = tiny.model(architecture="encoder", tied_output=False, **ONE)
    model.head.weight_VD.data *= 1e5  # so far from 0, float32 has no steps of 1e-4
    with pytest.raises(PipelineError, match=r"as model\.onnx: logits differ by up to \S+, more than 0\.0001; nothing"):
        exported(tmp_path, model)
    assert {path.name for path in tmp_path.iterdir()} == {"model", "tokenizer"}


def test_a_bidirectional_prefix_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model").mkdir()
    model = tiny.model(architecture="decoder", bidirectional_prefix=True)
    save_model(tmp_path / "model", model, tiny.write_tokenizer(tmp_path / "tokenizer"), {})
    assert main([str(tmp_path / "model"), str(tmp_path / "exported")]) == 1
    said = capsys.readouterr()
    assert said.err.startswith(f"error: {tmp_path}/model has bidirectional_prefix: ")
    assert said.err.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"model", "tokenizer"}


def test_the_command_line_helps_exports_and_says_what_is_wrong_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "lightning_modules.interop.onnx", *arguments]
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)

    assert "python -m lightning_modules.interop.onnx models/" in run("--help").stdout
    (tmp_path / "model").mkdir()
    model = tiny.model(architecture="decoder", positions="none", **ONE)
    save_model(tmp_path / "model", model, tiny.write_tokenizer(tmp_path / "tokenizer"), {})
    done = run(str(tmp_path / "model"), str(tmp_path / "exported"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{tmp_path}/exported/model.onnx: numbers within ")
    assert onnx.load(tmp_path / "exported" / "model.onnx").opset_import[0].version == 20
    assert main([str(tmp_path / "model"), str(tmp_path / "exported")]) == 1
    assert capsys.readouterr().err == (
        f"error: {tmp_path}/exported is there already: remove it, or choose another output\n"
    )
