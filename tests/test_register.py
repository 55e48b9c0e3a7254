"""Models in a real registry: loadable without our repository, the better one champion, nothing registered twice."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from lightning_modules.errors import PipelineError
from lightning_modules.model_folder import new_model, save_model
from lightning_modules.text_to_text import TextToText
from lightning_modules.transformer.config import TransformerConfig
from stages.delivery import tracking_uri
from stages.params import Params, load_params
from stages.register import register_all
from stages.tasks import TASKS

REPOSITORY = Path(__file__).parents[1]
TASK = "translation"
MODEL = "transformer-translation"


def write_model(folder: Path, seed: int) -> None:
    """An untrained model of two dozen thousand weights, with a tokenizer of bytes."""
    special = ["<pad>", "<s>", "</s>", "<unk>", "<mask>"]
    vocabulary = {token: i for i, token in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder.parent / "bytes.json"
    tokenizer.save(str(file))
    shape: Any = {"d_model": 16, "heads": 2, "d_ff": 32, "encoder_layers": 1, "decoder_layers": 1, "max_length": 32}
    config = TransformerConfig(architecture="encoder_decoder", vocab_size=len(vocabulary), norm="pre", **shape)
    save_model(folder, new_model(config, seed), file, {"max_source_tokens": 32, "max_target_tokens": 8})
    (folder / "training.json").write_text(json.dumps({"mlflow_run_id": "abc"}))


def write_score(root: Path, score: float) -> None:
    numbers = {"pretrained": score, "pretrained_low": score - 1, "pretrained_high": score + 1}
    metric = numbers | {"gain": 3.0, "gain_low": 2.0, "gain_high": 4.0}
    (root / "reports").mkdir(exist_ok=True)
    (root / "reports" / "metrics.json").write_text(json.dumps({TASK: {TASKS[TASK].primary: metric}}))


@pytest.fixture
def params() -> Params:
    whole = load_params(REPOSITORY / "params.yaml")
    return whole.model_copy(update={"tasks": {TASK: whole.tasks[TASK]}})


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("MLFLOW_TRACKING_URI", "PIPELINE_RUN", "DVC_STAGE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "models" / TASK, seed=1)
    write_score(tmp_path, 20.0)
    return tmp_path


def test_models_are_registered_once_compared_and_load_anywhere(root: Path, params: Params) -> None:
    from mlflow import MlflowClient

    first = register_all(params, root)[TASK]
    assert (first["version"], first["alias"], first["uri"]) == ("1", "champion", f"models:/{MODEL}@champion")
    client = MlflowClient(tracking_uri(root))
    tags = client.get_model_version(MODEL, "1").tags
    assert (tags["score"], tags["metric"], tags["training_run"]) == ("20.0", TASKS[TASK].primary, "abc")
    assert tags["gain_interval"] == "2.0 to 4.0"

    again = register_all(params, root)[TASK]
    assert (again["version"], again["alias"]) == ("1", "champion"), "the same model is not registered twice"

    write_model(root / "models" / TASK, seed=2)
    write_score(root, 19.0)
    worse = register_all(params, root)[TASK]
    assert (worse["version"], worse["alias"]) == ("2", "challenger")
    assert worse["reason"] == "not better than version 1: 19.00 against 20.00"

    write_model(root / "models" / TASK, seed=3)
    write_score(root, 21.0)
    better = register_all(params, root)[TASK]
    assert (better["version"], better["alias"]) == ("3", "champion")
    aliases = client.get_registered_model(MODEL).aliases
    assert {alias: str(number) for alias, number in aliases.items()} == {"champion": "3", "challenger": "2"}

    write_model(root / "models" / TASK, seed=4)
    write_score(root, 50.0)
    (root / "dvc.lock").write_text(
        json.dumps({"stages": {"e": {"deps": [{"path": f"data/prepared/{TASK}/test.parquet", "md5": "other"}]}}})
    )
    other = register_all(params, root)[TASK]
    assert other["alias"] == "challenger"
    assert other["reason"] == "not comparable with version 3, which was scored on other test texts"

    assert loaded_elsewhere(root) == TextToText.load(root / "models" / TASK).generate(["Open the door", ""])


def loaded_elsewhere(root: Path) -> list[str]:
    """What the challenger answers in a process that has MLflow, but not our repository, at hand."""
    folder = root / "elsewhere"
    folder.mkdir()
    script = f"""
import json, mlflow, pandas
model = mlflow.pyfunc.load_model("models:/{MODEL}@challenger")
import lightning_modules
assert "{REPOSITORY}" not in lightning_modules.__file__, lightning_modules.__file__
print(json.dumps(model.predict(pandas.DataFrame({{"source": ["Open the door", ""]}}))))
requirements = mlflow.pyfunc.get_model_dependencies("models:/{MODEL}@challenger")
assert "+" not in open(requirements).read()
"""
    environment = {"MLFLOW_TRACKING_URI": tracking_uri(root), "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    answers: list[str] = json.loads(done.stdout.strip().split("\n")[0])
    return answers


def test_without_a_server_it_is_an_error(root: Path, params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    with pytest.raises(PipelineError, match=r"^MLflow at http://127.0.0.1:9 does not answer, so nothing is registered"):
        register_all(params, root)


def test_missing_results_and_models_are_one_line(root: Path, params: Params) -> None:
    (root / "reports" / "metrics.json").write_text("{}")
    with pytest.raises(PipelineError, match="has no chrf of translation: run the report stage again"):
        register_all(params, root)
    write_score(root, 20.0)
    (root / "models" / TASK / "config.json").unlink()
    with pytest.raises(PipelineError, match=r"models/translation is not a whole model .* run finetune@translation"):
        register_all(params, root)
