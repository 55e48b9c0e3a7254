"""Models in a real registry: the surely better one champion, the broken one refused, served without our repository."""

import json
import os
import re
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest
import tiny
import torch
from mlflow_tools import server
from processes import eventually, free_port
from registered import MODEL, RECORDS, TASK, params, records, write_model, write_results
from sacrebleu.metrics.chrf import CHRF
from safetensors.torch import load_file, save_file

from lightning_modules.errors import PipelineError
from lightning_modules.interop.ctranslate2_engine import CTranslate2Engine
from lightning_modules.model_folder import save_model
from lightning_modules.text_to_text import TextToText
from lightning_modules.transformer.heads import SpanReader
from stages.params import Params
from stages.promotion import check_export
from stages.register import register_all
from stages.tasks import TASKS
from stages.tracking_store import tracking_uri

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def root(study: Path) -> Path:
    write_model(study, seed=1)
    write_results(study, right=0.5)
    return study


def client(root: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri(root))


def quick() -> Params:
    """Without an export of every model that is registered."""
    ours = params()
    return ours.model_copy(update={"promotion": ours.promotion.model_copy(update={"check_export": False})})


def aliases(root: Path) -> dict[str, str]:
    return {alias: str(number) for alias, number in client(root).get_registered_model(MODEL).aliases.items()}


def chrf(answers: list[str], texts: list[str]) -> float:
    return float(CHRF().corpus_score(answers, [texts]).score)


def test_models_are_registered_once_and_the_surely_better_is_champion(root: Path) -> None:
    first = register_all(params(), root)[TASK]
    assert (first["version"], first["alias"], first["uri"]) == ("1", "champion", f"models:/{MODEL}@champion")
    tags = client(root).get_model_version(MODEL, "1").tags
    assert (tags["score"], tags["metric"], tags["training_run"]) == ("50.0", TASKS[TASK].primary, "abc")
    assert (tags["gain_interval"], tags["leaked_share"]) == ("2.0 to 4.0", "0.0")
    assert "outputs are identical" in tags["export"]

    again = register_all(params(), root)[TASK]
    assert (again["version"], again["alias"]) == ("1", "champion"), "the same model is not registered twice"

    write_model(root, seed=2)
    write_results(root, right=0.52)  # one record more, which chance may give
    little = register_all(params(), root)[TASK]
    assert (little["version"], little["alias"]) == ("2", "challenger")
    assert little["reason"].startswith("not surely better than version 1: chrf +")
    assert float(client(root).get_model_version(MODEL, "2").tags["p_value"]) > 0.05

    write_model(root, seed=3)
    write_results(root, right=0.9)
    better = register_all(params(), root)[TASK]
    assert (better["version"], better["alias"]) == ("3", "champion")
    assert aliases(root) == {"champion": "3", "challenger": "2"}
    tags = client(root).get_model_version(MODEL, "3").tags
    texts = [row["target"] for row in records()]
    answers = [text if number < 0.9 * RECORDS else "???" for number, text in enumerate(texts)]
    before = [text if number < 0.5 * RECORDS else "???" for number, text in enumerate(texts)]
    assert float(tags["difference"]) == pytest.approx(chrf(answers, texts) - chrf(before, texts), abs=1e-3)
    assert (tags["compared_with"], tags["replaced"], tags["alias_reason"]) == ("1", "1", better["reason"])
    assert float(tags["p_value"]) < 0.05


def test_a_champion_that_was_scored_on_other_texts_answers_these(root: Path) -> None:
    register_all(params(), root)
    texts = [row["source"] for row in records(first=100)]
    theirs = TextToText.load(root / "models" / TASK).generate(texts)
    write_model(root, seed=2)
    write_results(root, right=0.5, first=100)
    assert register_all(params(), root)[TASK]["alias"] == "champion"
    tags = client(root).get_model_version(MODEL, "2").tags
    answers = [text if number < 0.5 * RECORDS else "???" for number, text in enumerate(texts)]
    assert float(tags["difference"]) == pytest.approx(chrf(answers, texts) - chrf(theirs, texts), abs=1e-3)


def by_engine(root: Path, texts: list[str]) -> list[str]:
    return CTranslate2Engine(root / "models" / TASK).generate(texts)


def test_the_champion_answers_by_the_engine_that_wrote_the_new_models_answers(root: Path) -> None:
    """Also where what it answered to these texts was logged, but written by PyTorch."""
    register_all(params(), root)
    assert client(root).get_model_version(MODEL, "1").tags["engine"] == "pytorch"
    texts = [row["source"] for row in records()]
    theirs, otherwise = by_engine(root, texts), TextToText.load(root / "models" / TASK).generate(texts)
    assert chrf(theirs, texts) != chrf(otherwise, texts)
    write_model(root, seed=2)
    write_results(root, right=0.9)
    ours = params()
    ours = ours.model_copy(update={"evaluate": ours.evaluate.model_copy(update={"engine": "ctranslate2"})})
    assert register_all(ours, root)[TASK]["alias"] == "champion"
    tags = client(root).get_model_version(MODEL, "2").tags
    answers = [text if number < 0.9 * RECORDS else "???" for number, text in enumerate(texts)]
    assert float(tags["difference"]) == pytest.approx(chrf(answers, texts) - chrf(theirs, texts), abs=1e-3)
    assert tags["engine"] == "ctranslate2"


def test_where_the_champion_has_no_such_engine_both_answer_by_pytorch(root: Path) -> None:
    ours = quick()
    write_model(root, seed=1, positions="alibi")
    register_all(ours, root)
    texts = [row["source"] for row in records(first=100)]
    theirs = TextToText.load(root / "models" / TASK).generate(texts)
    write_model(root, seed=2)
    write_results(root, right=0.9, first=100)
    mine = TextToText.load(root / "models" / TASK).generate(texts)
    ours = ours.model_copy(update={"evaluate": ours.evaluate.model_copy(update={"engine": "ctranslate2"})})
    second = register_all(ours, root)[TASK]
    assert "both answered by PyTorch, as version 1 cannot by ctranslate2: " in second["reason"]
    tags = client(root).get_model_version(MODEL, "2").tags
    assert float(tags["difference"]) == pytest.approx(chrf(mine, texts) - chrf(theirs, texts), abs=1e-3)


def test_a_champion_that_cannot_answer_stays_champion(root: Path) -> None:
    register_all(params(), root)
    [config] = (root / ".pipeline" / "mlartifacts").rglob(f"artifacts/{TASK}/config.json")
    config.write_text("{}")
    write_model(root, seed=2)
    write_results(root, right=1.0, first=100)
    other = register_all(params(), root)[TASK]
    assert other["alias"] == "challenger"
    assert other["reason"].startswith("version 1 cannot be compared on these test texts: ")


def spoil(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] = torch.nan
    save_file(weights, folder / "model.safetensors")


def test_the_gate_refuses(root: Path) -> None:
    ours = params()
    rules = ours.promotion.model_copy(update={"min_score": {TASK: 40.0}, "check_export": False})
    ours = ours.model_copy(update={"promotion": rules})
    register_all(ours, root)
    cases: list[tuple[dict[str, float], str]] = [
        ({"score": float("nan")}, "its score is nan"),
        ({"score": 39.0}, "its score, 39.00, is below promotion.min_score, 40"),
        ({"leaked": 0.25}, "25.0% of its test records stand in training text, leakage.max_share is 0.1"),
        ({}, "tensors hold what is no finite number"),
    ]
    folder = write_model(root, seed=2)
    for results, says in cases:
        if not results:
            spoil(folder)
        write_results(root, right=1.0, **results)
        refused = register_all(ours, root)[TASK]
        assert (refused["version"], refused["alias"], refused["state"]) == ("2" if results else "3", None, "refused")
        assert says in refused["reason"]
        assert client(root).get_model_version(MODEL, refused["version"]).tags["alias_reason"] == refused["reason"]
        assert aliases(root) == {"champion": "1"}
    write_model(root, seed=2)  # the same as version 2, measured anew and found to be good
    assert register_all(ours, root)[TASK]["version"] == "2"
    assert aliases(root) == {"champion": "2"}


def test_a_model_whose_answers_hang_on_rounding_is_refused_for_its_export(tmp_path: Path) -> None:
    model = tiny.model()
    for parameter in model.parameters():
        parameter.data.mul_(1000)
    save_model(tmp_path, model, tiny.write_tokenizer(tmp_path / "t"), {})
    fine, found = check_export(tmp_path, tiny.sentences()[:10])
    assert not fine
    assert found.startswith("exported, it does not write the same: ")
    assert "probabilities of tokens differ by" in found


def test_what_writes_nothing_or_not_as_ctranslate2_would_gives_the_same_numbers_in_onnx(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "torch"))  # which torch would make there
    reader = SpanReader(tiny.model(architecture="encoder", encoder_layers=1))
    far = tiny.model(architecture="decoder", decoder_layers=1, positions="relative")
    prefix = tiny.model(architecture="decoder", decoder_layers=1, bidirectional_prefix=True)
    folders = []
    for model in (reader, far, prefix):
        folders.append(tmp_path / f"model-{len(folders)}")
        folders[-1].mkdir()
        save_model(folders[-1], model, tiny.write_tokenizer(tmp_path / "t"), {})
    for folder in folders[:2]:
        fine, found = check_export(folder, ["A text."])
        assert fine
        assert re.fullmatch(r"in ONNX: model\.onnx: numbers within \d\.\de-\d\d", found)
    fine, found = check_export(folders[2], ["A text."])
    assert fine
    assert found.startswith("not checked: CTranslate2 has no counterpart (bidirectional_prefix: ")
    for parameter in reader.parameters():
        parameter.data.mul_(1000)
    save_model(folders[0], reader, tiny.write_tokenizer(tmp_path / "t"), {})
    fine, found = check_export(folders[0], ["A text."])
    assert not fine
    assert re.match("exported to ONNX, it does not give the same numbers: .*scores differ by up to", found)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as where it is not installed
    assert check_export(folders[0], ["A text."]) == (
        True,
        "not checked: a SpanReader writes no text, and onnxruntime is not installed",
    )
    assert list((tmp_path / "temporary").iterdir()) == []
    assert capfd.readouterr() == ("", "")


LOAD = """
import json, sys
for name in ("pytorch_lightning", "prefect", "dvc", "datasets", "transformers", "sacrebleu"):
    sys.modules[name] = None  # what the requirements do not name is not there
import mlflow, pandas
model = mlflow.pyfunc.load_model(sys.argv[1])
import lightning_modules
assert sys.argv[2] not in lightning_modules.__file__, lightning_modules.__file__
print(json.dumps(model.predict(pandas.DataFrame({"source": json.loads(sys.argv[3])}))))
assert "+" not in open(mlflow.pyfunc.get_model_dependencies(sys.argv[1])).read()
"""


def test_it_loads_and_serves_where_our_repository_is_not(root: Path) -> None:
    register_all(params(), root)
    texts = ["Open the door", ""]
    expected = TextToText.load(root / "models" / TASK).generate(texts)
    uri, elsewhere = f"models:/{MODEL}@champion", root / "elsewhere"
    elsewhere.mkdir()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {"MLFLOW_TRACKING_URI": tracking_uri(root), "PATH": path}
    command = [sys.executable, "-c", LOAD, uri, str(REPOSITORY), json.dumps(texts)]
    done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.strip().split("\n")[0]) == expected

    port = free_port()
    command = ["mlflow", "models", "serve", "-m", uri, "--env-manager", "local", "-p", str(port)]
    with (root / "serve.log").open("w") as log:
        serving = subprocess.Popen(command, cwd=elsewhere, env=environment, stdout=log, stderr=log, process_group=0)
    try:
        body = json.dumps({"dataframe_split": {"columns": ["source"], "data": [[text] for text in texts]}}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{port}/invocations", body)
        request.add_header("Content-Type", "application/json")
        answers: list[Any] = []

        def answered() -> bool:
            assert serving.poll() is None, (root / "serve.log").read_text()
            try:
                with urllib.request.urlopen(request, timeout=10) as response:
                    answers.append(json.loads(response.read()))
            except OSError:
                return False
            return True

        eventually(answered)
        assert answers == [{"predictions": expected}]
        request.data = json.dumps({"dataframe_records": [{"source": texts[0]}, {"source": None}]}).encode()
        with pytest.raises(HTTPError) as refused:
            urllib.request.urlopen(request, timeout=60)
        assert refused.value.code == 400
        assert "row 1 (the first is 0) has null as its source" in json.loads(refused.value.read())["message"]
    finally:
        os.killpg(serving.pid, 9)
        serving.wait()


def test_what_is_registered_holds_no_pickle_and_says_what_it_takes(root: Path) -> None:
    register_all(params(), root)
    from mlflow.artifacts import download_artifacts
    from mlflow.models import get_model_info

    uri = f"models:/{MODEL}/1"
    files = [path for path in Path(download_artifacts(uri, dst_path=str(root / "copy"))).rglob("*") if path.is_file()]
    assert {"model.safetensors", "tokenizer.json", "config.json", "input_example.json"} <= {path.name for path in files}
    for path in files:
        assert path.suffix not in {".pkl", ".pickle", ".pt", ".bin"}
        assert path.read_bytes()[:2] not in {b"\x80\x04", b"\x80\x05"}, f"{path} is a pickle"
        assert path.name != "predictions.jsonl", "who serves a model need not have the test texts"
    info = get_model_info(uri)
    assert info.signature.inputs.input_names() == ["source"]
    assert info.saved_input_example_info


REGISTER = """
import sys, time
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
from registered import params
from stages.register import register_all
Path("ready").touch()
while not Path("../go").exists():
    time.sleep(0.01)
print(register_all(params(), Path.cwd()))
"""


def test_two_workspaces_that_register_at_once_leave_the_better_as_champion(root: Path) -> None:
    port = free_port()
    with server(root, port):
        environment = os.environ | {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"}
        folders = {"good": (0.5, 2), "best": (1.0, 3)}
        for name, (right, seed) in folders.items():
            (root / name).mkdir()
            write_model(root / name, seed)
            write_results(root / name, right)
        command = [sys.executable, "-c", REGISTER, str(REPOSITORY), str(REPOSITORY / "tests")]
        both = [
            subprocess.Popen(command, cwd=root / name, env=environment, stdout=subprocess.PIPE, text=True)
            for name in folders
        ]
        eventually(lambda: all((root / name / "ready").exists() for name in folders))
        (root / "go").touch()
        said = [process.communicate()[0] for process in both]
        assert [process.returncode for process in both] == [0, 0], said

        from mlflow import MlflowClient

        remote = MlflowClient(environment["MLFLOW_TRACKING_URI"])
        versions = {tags["score"]: str(version.version) for version, tags in _tagged(remote)}
        assert set(versions.values()) == {"1", "2"}
        found = remote.get_registered_model(MODEL).aliases
        assert str(found["champion"]) == versions["100.0"]
        assert {tags["state"] for _, tags in _tagged(remote)} <= {"promoted", "challenger"}
        assert str(found.get("challenger", versions["50.0"])) == versions["50.0"]


def _tagged(remote: Any) -> list[tuple[Any, dict[str, str]]]:
    return [(version, version.tags) for version in remote.search_model_versions(f"name='{MODEL}'")]


def test_without_a_server_it_is_an_error(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    with pytest.raises(PipelineError, match=r"^MLflow at http://127.0.0.1:9 does not answer, so nothing is registered"):
        register_all(params(), root)


def test_missing_results_and_models_are_one_line(root: Path) -> None:
    (root / "reports" / "leakage.json").write_text("{}")
    with pytest.raises(PipelineError, match=r"leakage.json no share \('translation/test'\): run the stages"):
        register_all(params(), root)
    write_results(root, right=0.5)
    (root / "reports/tasks" / TASK / "predictions.jsonl").write_text('{"source": "a", "target": "b"}\n')
    with pytest.raises(PipelineError, match=r"predictions.jsonl holds no answers of pretrained .*: run evaluate again"):
        register_all(params(), root)
    write_results(root, right=0.5)
    (root / "models" / TASK / "config.json").unlink()
    with pytest.raises(PipelineError, match=r"models/translation is not a whole model .* run finetune@translation"):
        register_all(params(), root)


def test_a_challenger_that_is_refused_later_loses_its_alias(root: Path) -> None:
    ours = params()
    rules = ours.promotion.model_copy(update={"check_export": False})
    register_all(ours.model_copy(update={"promotion": rules}), root)
    write_model(root, seed=2)
    write_results(root, right=0.52)
    register_all(ours.model_copy(update={"promotion": rules}), root)
    assert aliases(root) == {"champion": "1", "challenger": "2"}
    rules = rules.model_copy(update={"min_score": {TASK: 60.0}})
    refused = register_all(ours.model_copy(update={"promotion": rules}), root)[TASK]
    assert (refused["version"], refused["alias"], refused["state"]) == ("2", None, "refused")
    assert aliases(root) == {"champion": "1"}
