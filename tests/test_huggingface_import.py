"""Imported folders: a published checkpoint becomes a model folder, or a clear refusal that leaves nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers
from ruamel.yaml import YAML
from two_hands import BERT, GPT2, LEARNED, LLAMA, RELATIVE, names, published_folder

from lightning_modules.errors import PipelineError
from lightning_modules.interop.huggingface import import_model, to_hugging_face
from lightning_modules.model_folder import load_model, load_tokenizer
from stages.params_schema import StartFrom
from stages.start import checked_folder

yaml = YAML(typ="safe")


@pytest.mark.parametrize(
    "changes",
    [{}, LEARNED, RELATIVE | {"scale_logits": True}, GPT2, LLAMA, BERT],
    ids=["pegasus", "bart", "t5", "gpt2", "llama", "bert"],
)
def test_a_published_folder_becomes_a_model_folder(changes: dict[str, Any], tmp_path: Path) -> None:
    original = tiny.model(**changes)
    import_model(published_folder(tmp_path, changes), tmp_path / "out")
    assert names(tmp_path / "out") == {"model.safetensors", "config.json", "tokenizer.json"}
    loaded = load_model(tmp_path / "out")
    for name, tensor in original.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert (loaded.config.pad_id, loaded.config.bos_id, loaded.config.eos_id) == (0, 1, 2)
    assert load_tokenizer(tmp_path / "out").encode("Yes, list it.").ids == tiny.encoded(["Yes, list it."])[0]


def test_heads_that_ours_have_not_are_left_out_aloud(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"vocab_size": 600, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = transformers.BertConfig(**settings, intermediate_size=40)
    transformers.BertForPreTraining(config).save_pretrained(tmp_path / "published")
    file = tiny.write_tokenizer(tmp_path / "published")
    padding = {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None}
    padding |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"padding": padding}))
    import_model(tmp_path / "published", tmp_path / "out")
    assert "bert.pooler.dense.weight" in capsys.readouterr().out
    assert load_tokenizer(tmp_path / "out").encode("Yes").ids == tiny.encoded(["Yes"])[0]  # padded no more
    config_saved = load_model(tmp_path / "out").config
    assert (config_saved.pad_id, config_saved.bos_id, config_saved.eos_id) == (0, 1, 2)  # of the tokenizer


def test_half_precision_is_imported_in_full(tmp_path: Path) -> None:
    theirs = to_hugging_face(tiny.model(**LLAMA)).to(torch.bfloat16)
    theirs.save_pretrained(tmp_path / "published")
    tiny.write_tokenizer(tmp_path / "published")
    import_model(tmp_path / "published", tmp_path / "out")
    embedding = load_model(tmp_path / "out").state_dict()["embedding.weight_VD"]
    assert embedding.dtype == torch.float32
    assert torch.equal(embedding.bfloat16(), theirs.get_input_embeddings().weight)


def test_an_import_that_is_refused_leaves_nothing(tmp_path: Path) -> None:
    no_tokenizer = published_folder(tmp_path, {}, tokenizer=False)
    before = names(tmp_path)

    def refused(named: str) -> None:
        with pytest.raises(PipelineError, match=named) as refusal:
            import_model(no_tokenizer, tmp_path / "out")
        assert "\n" not in str(refusal.value)
        assert names(tmp_path) == before

    refused("no tokenizer.json")
    tiny.write_tokenizer(no_tokenizer)
    config = json.loads((no_tokenizer / "config.json").read_text())

    def rewrite(**changes: Any) -> None:
        (no_tokenizer / "config.json").write_text(json.dumps(config | changes))

    rewrite(decoder_layers=3)
    refused("no fitting weights for model.decoder.layers.2")
    rewrite(d_model=64)
    refused("no fitting weights|cannot be opened")
    rewrite(vocab_size=500)
    refused("no fitting weights|cannot be opened")
    rewrite(model_type="gemma")
    refused("is not covered")
    rewrite(model_type="own", auto_map={"AutoConfig": "evil.Config"})
    (no_tokenizer / "evil.py").write_text("raise SystemExit('code of a checkpoint was run')")
    refused("cannot be opened")
    (no_tokenizer / "evil.py").unlink()
    rewrite()
    (no_tokenizer / "tokenizer.json").write_text("{}")
    refused("cannot be read as a tokenizer")
    tiny.write_tokenizer(no_tokenizer)
    weights = no_tokenizer / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    refused("cannot be opened")
    weights.unlink()
    torch.save({}, no_tokenizer / "pytorch_model.bin")
    refused(r"no safetensors \(pytorch_model.bin there\)")


def test_a_model_without_padding_gets_a_token_for_it_and_the_pipeline_can_start_from_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = to_hugging_face(tiny.model(**GPT2))
    theirs.config.pad_token_id = theirs.generation_config.pad_token_id = None
    theirs.save_pretrained(tmp_path / "published")
    tokenizer = json.loads(tiny.tokenizer_json().replace("<pad>", "<one>").replace("<unk>", "<other>"))
    (tmp_path / "published/tokenizer.json").write_text(json.dumps(tokenizer))
    import_model(tmp_path / "published", tmp_path / "out")
    said = capsys.readouterr().out
    loaded = load_model(tmp_path / "out")
    pad = loaded.config.pad_id
    assert (pad, loaded.config.vocab_size) == (tiny.VOCAB_SIZE, tiny.VOCAB_SIZE + 1)
    assert load_tokenizer(tmp_path / "out").token_to_id("<pad>") == pad
    ids = torch.randint(5, tiny.VOCAB_SIZE, (8, 20))
    with torch.inference_mode():
        best = loaded.logits(loaded(ids[:, :0], ids)).argmax(-1)
    assert not (best == pad).any()

    monkeypatch.chdir(tmp_path)
    start = yaml.load(said.partition("model: ")[2])["start_from"]
    assert checked_folder(StartFrom(**start)) == tmp_path / "out"
    with pytest.raises(PipelineError, match="has the SHA-256"):
        checked_folder(StartFrom(path=tmp_path / "out", sha256="0" * 64))
