"""Facts of a run, from real git and DVC repositories."""

import json
import os
import textwrap
import time
from pathlib import Path

import pytest
from mlflow_tools import runs, shell
from ruamel.yaml import YAML

from stages.dvc_lock import locked_stages
from stages.lineage import dvc_dependencies, lineage, without_credentials
from stages.tracking import stage_run
from stages.tracking_store import tracking_uri

ROOT = Path(__file__).parents[1]


def test_a_lock_file_is_read_whole_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert locked_stages(tmp_path) == {}
    stages = {f"stage{number}": {"cmd": "python -c pass", "deps": [{"path": "a"}]} for number in range(3)}
    text = "schema: '2.0'\nstages:\n" + "".join(f"  {name}: {json.dumps(one)}\n" for name, one in stages.items())
    first, second = text.index("stage1") + 20, text.index("  stage2")  # in the middle of a value, and at a line's end
    path = tmp_path / "dvc.lock"
    ends = iter((0, first, second, len(text), len(text)))

    def write(_: float = 0.0) -> None:  # as far as the next pause of who reads finds it written
        path.write_text(text[: next(ends)])
        os.utime(path, (time.time() + 60,) * 2)  # just now, however busy the machine is

    write()
    with monkeypatch.context() as patch:
        patch.setattr("stages.dvc_lock.time.sleep", write)
        assert locked_stages(tmp_path) == stages
    assert not list(ends), "it was read until it stayed the same"
    os.utime(path, (1, 1))
    assert locked_stages(tmp_path) == stages
    path.write_text("[")
    assert locked_stages(tmp_path) == {}, "not what DVC writes"


def test_hashes_of_dependencies_and_links_to_the_runs_that_made_them(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (study / "dvc.yaml").write_text(
        textwrap.dedent("""
            stages:
              prepare: {cmd: "python -c pass", deps: [words.txt, a.py], params: [seed], outs: [out/prepared.txt]}
              tokenize: {cmd: "python -c pass", deps: [out/prepared.txt], outs: [tokens]}
        """)
    )
    (study / "params.yaml").write_text("seed: 1\ntracking: {experiment: a study}\n")
    (study / "words.txt").write_text("some words\n")
    (study / "a.py").write_text("")
    for command in (
        "git init -q",
        "git config user.email a@b.c",
        "git config user.name a",
        "git remote add origin https://me:token@example.org/r.git",
        "dvc init -q",
        "git add -A",
        "git commit -qm first",
    ):
        shell(study, command)
    with stage_run("prepare") as prepare:
        (study / "out").mkdir()
        (study / "out" / "prepared.txt").write_text("prepared\n")
    shell(study, "dvc commit -f prepare")
    with stage_run("tokenize") as tokenize:
        pass
    locked = (study / "dvc.lock").read_text()
    made = runs(tracking_uri(study))
    tags = made["prepare"].data.tags
    assert tags["dvc.dep.words.txt"] in locked
    assert tags["mlflow.source.git.repoURL"] == "https://example.org/r.git"
    assert len(tags["mlflow.source.git.commit"]) == 40
    assert tags["git.dirty"] == "false"
    assert [given.dataset.name for given in made["prepare"].inputs.dataset_inputs] == ["words.txt"], "code is no data"
    (given,) = made["tokenize"].inputs.dataset_inputs
    assert given.dataset.name == "out/prepared.txt"
    assert given.dataset.digest in locked
    link = f"[prepare](#/experiments/{made['prepare'].info.experiment_id}/runs/{prepare.run_id})"
    assert link in made["tokenize"].data.tags["mlflow.note.content"]
    assert tokenize.run_id == made["tokenize"].info.run_id

    (study / "dvc.lock").write_text(locked[: locked.index("md5")])  # as another stage's DVC leaves it for a moment
    with monkeypatch.context() as patch:
        patch.setattr("stages.lineage.time.sleep", lambda _: (study / "dvc.lock").write_text(locked))
        assert dvc_dependencies("tokenize", [], study)["out/prepared.txt"] == given.dataset.digest
    assert (study / "dvc.lock").read_text() == locked, "it was read again"

    # Prepared again elsewhere, from other words: the former run did not make these bytes, and must not be named.
    (study / "words.txt").write_text("other words\n")
    shell(study, "dvc commit -f prepare")
    (study / "dvc.yaml").write_text((study / "dvc.yaml").read_text().replace("tokenize:", "pretrain:"))
    with stage_run("pretrain"):
        pass
    note = runs(tracking_uri(study))["pretrain"].data.tags["mlflow.note.content"]
    assert "out/prepared.txt" in note
    assert "[prepare]" not in note


@pytest.mark.parametrize(
    ("url", "bare"),
    [
        ("https://me:token@example.org/a/b.git", "https://example.org/a/b.git"),
        ("https://token@example.org:8080/a?key=1#x", "https://example.org:8080/a"),
        ("git@example.org:a/b.git", "git@example.org:a/b.git"),
        ("sqlite:////a/b.db", "sqlite:////a/b.db"),
        ("", ""),
    ],
)
def test_urls_lose_their_secrets(url: str, bare: str) -> None:
    assert without_credentials(url) == bare


def test_a_run_names_the_program_that_dvc_runs(tmp_path: Path) -> None:
    for name, definition in YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"].items():
        stage = definition.get("do", definition)
        source = lineage(f"{name}@one" if "do" in definition else name, [], tmp_path).tags["mlflow.source.name"]
        assert source == stage["cmd"].split()[2].replace(".", "/") + ".py"
    assert (ROOT / lineage("sweep", [], tmp_path).tags["mlflow.source.name"]).is_file()
