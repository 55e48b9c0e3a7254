"""The pre-trained model on held-out text: its numbers are those of a loop over the rows, for every architecture."""

from dataclasses import replace
from math import exp, log
from pathlib import Path

import pytest
import torch
from stage_runs import finish, workspace
from tiny import encoded, model, read_json, sentences, tokenizer, write_store
from torch.nn import functional

from lightning_modules.model_folder import save_model, sha256
from lightning_modules.named_objectives import make_objective
from lightning_modules.text_rows import TextRows
from lightning_modules.token_store import TokenStore, write_meta
from stages.evaluate_pretraining import evaluate_pretraining
from stages.params import Params, load_params
from stages.report_details import pretraining_words


def made(root: Path, architecture: str, objective: str) -> Params:
    """A workspace with a random model, and text of which the test split is `sentences()[300:340]`."""
    packing = "joined" if architecture == "decoder" else "best_fit"
    section = {"objective": objective, "packing": packing, "batch_size": 8}
    workspace(root, model={"architecture": architecture}, pretrain=section)
    tokenizer_file = root / "data/tokenizer/tokenizer.json"
    test, texts = root / "data/tokens/pretraining/test", sentences()[300:340]
    store = write_store(test, encoded(texts), sha256(tokenizer_file))
    write_meta(test, replace(store.meta, utf8_bytes=sum(len(text.encode()) for text in texts)))
    (root / "models/pretrained").mkdir(parents=True)
    save_model(root / "models/pretrained", model(1, architecture=architecture), tokenizer_file, {})
    return load_params(root / "params.yaml")


def test_a_decoder_is_measured_on_the_text_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = made(tmp_path / "root", "decoder", "causal_lm")
    monkeypatch.chdir(tmp_path / "root")
    found = evaluate_pretraining(params)
    store, ours = TokenStore(Path("data/tokens/pretraining/test")), model(1, architecture="decoder")
    objective = make_objective(
        {"causal_lm": 1.0}, corruption_rate=0.15, mean_span_length=3.0, whole_words=False, tokenizer=tokenizer()
    )
    full = store.joined_length // 32
    assert found["batches"] == min(full, 32) > params.pretrain.batch_size  # of one row, not as large as a training's
    rows = TextRows(store, ours.config, objective, 32, 1, found["batches"], params.seed, "joined")
    nats, count = 0.0, 0
    with torch.no_grad():
        for batch in rows.validation_batches(0, 1):
            for source, target in zip(batch.source_BS, batch.target_BT, strict=True):
                read = torch.cat([torch.tensor([ours.config.bos_id]), target[:-1]])
                scores = ours.logits(ours(source[None], read[None]))[0]
                nats += float(functional.cross_entropy(scores, target, reduction="sum"))
                count += len(target)
    assert found["tokens"] == count
    assert found["perplexity"]["score"] == pytest.approx(exp(nats / count), rel=1e-4)
    bytes_read = count * store.meta.utf8_bytes / (store.meta.tokens + store.meta.documents)
    assert found["bits_per_byte"]["score"] == pytest.approx(nats / log(2) / bytes_read, rel=1e-4)
    assert found["perplexity"]["low"] < found["perplexity"]["score"] < found["perplexity"]["high"]


def test_the_stage_writes_its_report(tmp_path: Path) -> None:
    made(tmp_path / "root", "encoder_decoder", "span_corruption")
    log_text = finish(tmp_path / "root", ("stages.evaluate_pretraining",))
    found = read_json(tmp_path / "root/reports/pretraining.json")
    assert found["objective"] == {"span_corruption": 1.0}
    assert f"bits per byte {found['bits_per_byte']['score']:.2f}" in log_text


def test_what_the_tokenizer_does_not_know_is_told_beside_bits_per_byte(tmp_path: Path) -> None:
    root = tmp_path / "root"
    made(root, "decoder", "causal_lm")
    log_text = finish(root, ("stages.evaluate_pretraining",))
    assert read_json(root / "reports/pretraining.json")["unknown_share"] == 0
    assert "<unk>" not in log_text
    test, unknown = root / "data/tokens/pretraining/test", tokenizer().token_to_id("<unk>")
    documents = [[unknown if n % 4 == 0 else token for n, token in enumerate(ids)] for ids in encoded(sentences()[:40])]
    store = write_store(test, documents, TokenStore(test).meta.tokenizer_sha256)
    write_meta(test, replace(store.meta, utf8_bytes=9999))
    log_text = finish(root, ("stages.evaluate_pretraining",))
    found = read_json(root / "reports/pretraining.json")
    assert found["unknown_share"] == pytest.approx(0.25, abs=0.05)
    assert f"pre-training, test split: {found['unknown_share']:.2%} of the tokens are <unk>" in log_text
    assert "not to be compared" in log_text
    assert pretraining_words(found).endswith("are not to be compared with those of another tokenizer.")


def test_too_little_text_and_a_model_from_elsewhere_are_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = made(tmp_path / "root", "encoder_decoder", "span_corruption")
    monkeypatch.chdir(tmp_path / "root")
    elsewhere = params.model_copy(update={"pretrain": params.pretrain.model_copy(update={"steps": 0})})
    assert evaluate_pretraining(elsewhere) == {"objective": {"span_corruption": 1.0}}
    write_store(Path("data/tokens/pretraining/test"), [[7] * 5, [8] * 5])
    assert evaluate_pretraining(params) == {"objective": {"span_corruption": 1.0}}
