"""docs/your-data.md: its commands take two text files to a served translation model; its examples are valid."""

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from processes import eventually, free_port
from repository_copy import ROOT, copy_of_repository, end_all_in, environment, shell
from ruamel.yaml import YAML

from flows.overrides import overridden
from stages.params import load_params
from stages.readers import READERS
from stages.tasks import TASKS

PAGE = (ROOT / "docs/your-data.md").read_text()
CHECK, RUN, QUARANTINE, SERVE, ASK = re.findall(r"```bash\n(.*?)```", PAGE, re.S)
[IN_PYTHON] = re.findall(r"```python\n(.*?)```", PAGE, re.S)
EXAMPLES = [YAML(typ="safe").load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.S)]
SMALL = {
    "prepare.validation_share": 0.1,
    "prepare.test_share": 0.1,
    "tokenizer.vocab_size": 600,
    "model.d_model": 32,
    "model.d_ff": 64,
    "pretrain.steps": 40,
    "pretrain.warmup_steps": 10,
    "pretrain.sequence_length": 64,
    "tasks.translation.steps": 60,
    "evaluate.max_records": 20,
    "evaluate.bootstrap_samples": 100,
}


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Path]:
    """A copy of this repository, and two files: the translation of a sentence is its first words."""
    root = copy_of_repository(tmp_path)
    lines = tiny.sentences()[:600]
    (root / "english.txt").write_text("\n".join([*lines, "a line without its translation"]) + "\n")
    (root / "german.txt").write_text("\n".join([*(" ".join(line.split()[:3]) for line in lines), ""]) + "\n")
    yield root
    end_all_in(root)


def answer(root: Path, port: int, command: str) -> dict[str, Any]:
    """What the served model says, once it is there."""
    ready = f"curl -sf http://127.0.0.1:{port}/ping"
    eventually(lambda: subprocess.run(ready, shell=True, capture_output=True, check=False).returncode == 0)
    return json.loads(shell(root, command))  # type: ignore[no-any-return]


def test_the_commands_take_two_files_to_a_served_model(workspace: Path) -> None:
    assert "params.yaml: ok" in shell(workspace, CHECK)
    (workspace / "params.yaml").write_text(overridden((workspace / "params.yaml").read_text(), SMALL))
    output = shell(workspace, RUN)
    assert "chrF" in output
    [bad] = [json.loads(line) for line in shell(workspace, QUARANTINE).splitlines() if '"translation"' in line]
    assert bad["line"] == 601
    port = free_port()
    with (workspace / "serve.log").open("w") as log:
        server = subprocess.Popen(
            SERVE.replace("5001", str(port)), shell=True, cwd=workspace, env=environment(workspace),
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        [text] = answer(workspace, port, ASK.replace("5001", str(port)))["predictions"]
    except (AssertionError, ValueError):
        pytest.fail((workspace / "serve.log").read_text())
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    assert isinstance(text, str)
    assert shell(workspace, f".venv/bin/python -c '{IN_PYTHON}'").splitlines()[-1] == str([text])


def test_the_recipe_says_about_the_data_what_the_page_says() -> None:
    recipe = YAML(typ="safe").load((ROOT / "recipes/your-translation.yaml").read_text())
    first = EXAMPLES[0]
    assert recipe["sources"]["local"] == first["sources"]["local"]
    assert recipe["data"] == first["data"]


def test_every_example_is_accepted_and_every_reader_and_task_told(tmp_path: Path) -> None:
    shipped = YAML(typ="safe").load((ROOT / "params.yaml").read_text())
    budget = shipped["tasks"]["translation"]
    for example in EXAMPLES:
        names = {entry[key] for entries in example["data"].values() for entry in entries for key in ("source", "target")
                 if key in entry}  # fmt: skip
        asked = example.get("sources", {})
        remote = asked.get("remote", {})
        local = {name: {"path": "x"} for name in names - set(remote)} | asked.get("local", {})
        data = {"pretraining": [{"source": min(names), "reader": "text", "split": "line"}], **example["data"]}
        tasks = {task: budget for task in data if task != "pretraining"}
        params = {**shipped, "sources": {"remote": remote, "local": local}, "data": data, "tasks": tasks}
        with (tmp_path / "params.yaml").open("w") as file:
            YAML().dump(params, file)
        assert load_params(tmp_path / "params.yaml").tasks.keys() == tasks.keys()
    told = {tuple(row) for row in re.findall(r"^\| `(\w+)` \| (.*?) \|", PAGE, re.M)}
    names = {name for name, _ in told}
    assert {name for name, reader in READERS.items() if ".whl" not in reader.formats} <= names
    assert {*TASKS, "pretraining"} <= names
    for task, about in TASKS.items():
        [fields] = [row[1] for row in told if row[0] == task]
        assert all(f"`{field}`" in fields for field in about.fields)
