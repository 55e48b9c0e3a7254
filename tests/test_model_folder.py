"""Model folders: bit-identical round trips; what is damaged or does not fit is one clear line; no pickle."""

import hashlib
import json
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import batch, config, model, read_json, reader, tokenizer, write_tokenizer

from lightning_modules.errors import PipelineError
from lightning_modules.model_folder import (
    Model,
    load_model,
    load_tokenizer,
    new_model,
    read_config,
    save_model,
    sha256,
    special_id,
)
from lightning_modules.transformer.heads import Classifier, SpanReader
from lightning_modules.vocabulary import token_bytes

LIMITS = {"max_source_tokens": 30, "max_target_tokens": 20}


SHAPES: dict[str, dict[str, Any]] = {
    "pre-norm": {},
    "post-norm": {"norm": "post"},
    "relative": {"positions": "relative", "tied_output": False},
    "decoder": {"architecture": "decoder", "positions": "rotary", "key_value_heads": 2, "bias": False},
    "encoder": {"architecture": "encoder", "token_types": 2, "output_transform": True, "output_bias": True},
    "characters": {"architecture": "encoder", "embeddings": "characters", "tied_output": False},
}


def saved(root: Path, made: Model | None = None, seed: int = 0) -> Path:
    folder = root / "model"
    folder.mkdir()
    save_model(folder, made or model(seed, dropout=0.3), write_tokenizer(root / "tokenizer"), LIMITS)
    return folder


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_saved_comes_back_bit_for_bit(tmp_path: Path, shape: str) -> None:
    changes = SHAPES[shape]
    original = model(**changes, dropout=0.3)
    if shape == "characters":
        original.embedding.spell(token_bytes(tokenizer()))
    folder = saved(tmp_path, original)
    loaded: Any = load_model(folder).eval()
    assert type(loaded) is type(original)
    assert loaded.config == config(**changes, dropout=0.0)
    assert load_model(folder, dropout=0.2).config.dropout == 0.2
    states = original.state_dict(), loaded.state_dict()
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    sides = batch(0, [7], [5])[: 1 if loaded.config.architecture == "encoder" else 2]
    assert torch.equal(original.logits(original(*sides)), loaded.logits(loaded(*sides)))
    assert read_config(folder)["limits"] == LIMITS
    assert load_tokenizer(folder).to_str() == tokenizer().to_str()
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "config.json", "tokenizer.json"}


def test_a_span_reader_comes_back_as_one(tmp_path: Path) -> None:
    original = reader(positions="learned")
    loaded = load_model(saved(tmp_path, original)).eval()
    assert isinstance(loaded, SpanReader)
    source_BS, _ = batch(0, [7], [5])
    assert torch.equal(original(source_BS), loaded(source_BS))


def test_a_classifier_comes_back_with_its_labels(tmp_path: Path) -> None:
    original = Classifier(model(architecture="encoder"), ["no", "ja", "はい"]).eval()
    folder = saved(tmp_path, original)
    assert read_config(folder)["labels"] == ["no", "ja", "はい"]
    loaded = load_model(folder).eval()
    assert isinstance(loaded, Classifier)
    assert loaded.labels == original.labels
    source_BS, _ = batch(0, [7], [5])
    assert torch.equal(original(source_BS), loaded(source_BS))


def test_how_a_model_is_used_stands_beside_what_it_is(tmp_path: Path) -> None:
    before = read_config(saved(tmp_path))
    tokenizer_file = write_tokenizer(tmp_path / "tokenizer")
    (folder := tmp_path / "two").mkdir()
    save_model(folder, model(0, dropout=0.3), tokenizer_file, LIMITS, {"threshold": 0.5})
    assert read_config(folder) == before | {"threshold": 0.5}
    load_model(folder)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_new_model_is_a_function_of_the_seed(shape: str) -> None:
    one, same, other = (new_model(config(**SHAPES[shape]), seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    matrices = [name for name, tensor in one.items() if tensor.ndim > 1 and tensor.is_floating_point()]
    assert not any(torch.equal(one[name], other[name]) for name in matrices)


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, two = saved(tmp_path / "a"), saved(tmp_path / "b")
    assert all(sha256(path) == sha256(two / path.name) for path in one.iterdir())


def test_a_digest_needs_no_memory_for_the_file(tmp_path: Path) -> None:
    path, content = tmp_path / "weights", bytes(range(256)) * 65_536
    path.write_bytes(content)
    expected = hashlib.sha256(content).hexdigest()
    tracemalloc.start()
    try:
        assert sha256(path) == expected
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < len(content) / 8


def test_the_tied_matrix_is_stored_once(tmp_path: Path) -> None:
    stored = load_file(saved(tmp_path) / "model.safetensors")
    assert sum(tensor.numel() for tensor in stored.values()) == sum(p.numel() for p in model().parameters())


def _another_tokenizer(folder: Path) -> None:
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace('"<mask>"', '"<task>"'))


def _cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _cut_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:50])


def _no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _weights_of_another_shape(folder: Path) -> None:
    save_file(model(d_model=16).state_dict(), folder / "model.safetensors")


def _a_missing_weight(folder: Path) -> None:
    state = model().state_dict()
    del state["encoder.norm.weight"]
    save_file(state, folder / "model.safetensors")


def _a_pickle(folder: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
            return Path.touch, (folder.parent / "exploded",)  # type: ignore[return-value]

    (folder / "model.safetensors").write_bytes(pickle.dumps(Bomb()))


def _config(change: Callable[[dict[str, object]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        values = read_json(folder / "config.json")
        change(values)
        (folder / "config.json").write_text(json.dumps(values))

    return damage


def _broken_json(folder: Path) -> None:
    (folder / "config.json").write_text('{"transformer": ')


def _labelled(folder: Path) -> None:
    save_model(folder, Classifier(model(architecture="encoder"), "abc"), folder.parent / "tokenizer/tokenizer.json", {})
    _config(lambda values: values.update(labels=["a", "b"]))(folder)


DAMAGES = {
    "another tokenizer": (_another_tokenizer, "not the tokenizer"),
    "cut weights": (_cut_weights, "model.safetensors"),
    "cut header": (_cut_header, "model.safetensors"),
    "no weights": (_no_weights, "model.safetensors"),
    "another shape": (_weights_of_another_shape, "model.safetensors"),
    "a missing weight": (_a_missing_weight, "encoder.norm.weight"),
    "a pickle": (_a_pickle, "model.safetensors"),
    "broken json": (_broken_json, "not a whole model folder"),
    "no digest": (_config(lambda values: values.pop("tokenizer_sha256")), "not a whole model folder"),
    "no shape": (_config(lambda values: values.pop("transformer")), "config.json"),
    "an unknown key": (_config(lambda values: values["transformer"].update(shutters=3)), "config.json"),  # type: ignore[attr-defined]
    "another architecture": (
        _config(lambda values: values["transformer"].update(architecture="decoder")),
        "config.json",
    ),  # type: ignore[attr-defined]
    "no such architecture": (
        _config(lambda values: values["transformer"].update(architecture="hopfield")),
        "config.json",
    ),  # type: ignore[attr-defined]
    "no word of spans": (_config(lambda values: values.pop("reads_spans")), "config.json"),
    "labels of no class": (_labelled, "classes.weight"),
    "impossible heads": (_config(lambda values: values["transformer"].update(heads=5)), "config.json"),  # type: ignore[attr-defined]
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_one_line_that_names_the_file(tmp_path: Path, name: str) -> None:
    damage, words = DAMAGES[name]
    folder = saved(tmp_path)
    load_model(folder)
    damage(folder)
    with pytest.raises(PipelineError) as caught:
        load_model(folder)
    message = str(caught.value)
    assert str(folder) in message
    assert words in message
    assert "\n" not in message
    assert not (tmp_path / "exploded").exists()


def test_no_folder_no_tokenizer_and_no_such_token_are_one_line(tmp_path: Path) -> None:
    for call in (load_model, read_config, load_tokenizer):
        with pytest.raises(PipelineError, match="nowhere") as caught:
            call(tmp_path / "nowhere")
        assert "\n" not in str(caught.value)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(PipelineError, match=r"tokenizer\.json cannot be read"):
        load_tokenizer(tmp_path)
    with pytest.raises(PipelineError, match="<extra_id_64>"):
        special_id(tokenizer(), "<extra_id_64>")
    assert special_id(tokenizer(), "<extra_id_0>") == 5
