"""What every kind of model answers where MLflow serves it, in a process that does not have our repository."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import tiny
from registered import MODEL, TASK, write_model, write_results
from test_register import LOAD, REPOSITORY, quick

from lightning_modules.model_folder import Model, save_model
from lightning_modules.text_to_text import TextToText
from lightning_modules.transformer.heads import Classifier, SpanReader
from stages.register import register_all
from stages.tasks import TASKS
from stages.tracking_store import tracking_uri

QUESTIONS = [
    TASKS["question_answering"].source_text({"question": "Which word?", "context": context})
    for context in tiny.sentences()[:3]
]
MODELS: dict[str, tuple[Callable[[], Model], list[str]]] = {
    "points at spans": (lambda: SpanReader(tiny.model(architecture="encoder")), QUESTIONS),
    "names classes": (lambda: Classifier(tiny.model(architecture="encoder"), ["cold", "warm"]), tiny.sentences()[:3]),
    "goes on": (lambda: tiny.lively(architecture="decoder"), tiny.sentences()[:3]),
}


@pytest.mark.parametrize(("wrong", "told"), [(None, "null"), (["a"], "a list"), ({"a": 1}, "a dict")])
def test_a_row_without_a_text_is_named(tmp_path: Path, wrong: Any, told: str) -> None:
    from mlflow.exceptions import MlflowException

    from stages.served_model import ServedModel

    folder, tokenizer = tmp_path / "model", tiny.write_tokenizer(tmp_path)
    folder.mkdir()
    save_model(folder, tiny.lively(), tokenizer, {"max_source_tokens": 60, "max_target_tokens": 8})
    served = ServedModel()
    served.load_context(SimpleNamespace(artifacts={"model": str(folder)}))
    told = f"row 1 (the first is 0) has {told} as its source: a text is wanted; no row was answered"
    with pytest.raises(MlflowException, match=re.escape(told)) as caught:
        served.predict(None, pd.DataFrame({"source": ["Open the door.", wrong]}))
    assert caught.value.get_http_status_code() == 400


EACH = f"""
import json, sys
for sys.argv[1:] in json.loads(sys.argv[1]):
    exec({LOAD!r})
"""


def test_each_loads_and_answers_where_our_repository_is_not(study: Path) -> None:
    """All in one process, which takes our code from the first."""
    ours, asked, expected = quick(), [], []
    for number, (make, texts) in enumerate(MODELS.values(), start=1):
        folder = write_model(study, seed=1)
        limits = {"max_source_tokens": 60, "max_target_tokens": 8}
        save_model(folder, make(), study / "data" / "tokenizer" / "tokenizer.json", limits)
        write_results(study, right=0.5)
        assert register_all(ours, study)[TASK]["version"] == str(number)
        expected.append(TextToText.load(folder).generate(texts))
        assert any(expected[-1])
        asked.append((f"models:/{MODEL}/{number}", str(REPOSITORY), json.dumps(texts)))

    elsewhere = study / "elsewhere"
    elsewhere.mkdir()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {"MLFLOW_TRACKING_URI": tracking_uri(study), "PATH": path}
    command = [sys.executable, "-c", EACH, json.dumps(asked)]
    done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")] == expected
