"""What a run would fail at is refused at its beginning: a missing file, prepare's own rules, a report of no task."""

import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_params import TEXT, line_of
from test_params_checks import NO_TASKS

from flows.__main__ import main
from flows.graph import read_plan
from flows.overrides import overridden
from lightning_modules.errors import PipelineError
from stages.params import load_params, require_ready

ROOT = Path(__file__).parents[1]
ALONE = "--targets pretrain evaluate_pretraining"


def write(folder: Path, changes: dict[str, Any]) -> Path:
    (folder / "params.yaml").write_text(overridden(TEXT, changes))
    return folder / "params.yaml"


def checked(folder: Path) -> "subprocess.CompletedProcess[str]":
    command, environment = [sys.executable, "-m", "stages.params"], {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("changes", "needed_by", "says"),
    [
        ({"sources.local": {"mine": {"path": "mine.txt"}}}, "fetch_local@mine", "mine.path: mine.txt does not exist"),
        (
            {"sources.local": {"mine": {"path": "~/mine.txt"}}},
            "fetch_local@mine",
            "sources.local.mine.path: ~/mine.txt does not exist: ~ is not expanded, write the home folder out",
        ),
        (
            {"prepare.weights": {"nope": 2}},
            "prepare",
            "prepare.weights: nope is no source of data.pretraining; there are botocore, homeassistant",
        ),
        ({"prepare.languages": ["en", "xx"]}, "prepare", "prepare.languages: 'xx' is no language that can be found: "),
    ],
)
def test_what_a_stage_would_refuse_is_refused_before_a_run(
    tmp_path: Path, changes: dict[str, Any], needed_by: str, says: str
) -> None:
    path = write(tmp_path, changes)
    done = checked(tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("error: params.yaml:")
    assert says in done.stderr
    with pytest.raises(PipelineError, match=r"params\.yaml:[0-9]+: "):
        require_ready(path, {needed_by, "fetch@botocore"})
    assert require_ready(path, {"fetch@botocore"}) == load_params(path)  # what is not run needs nothing


def test_a_file_that_is_there_is_looked_for_beside_params_yaml(tmp_path: Path) -> None:
    path = write(tmp_path, {"sources.local": {"mine": {"path": "mine.txt"}, "more": {"path": str(tmp_path)}}})
    with pytest.raises(PipelineError, match="more"):  # which holds the outputs
        require_ready(path)
    (tmp_path / "mine.txt").touch()
    assert require_ready(write(tmp_path, {"sources.local": {"mine": {"path": "mine.txt"}}})).sources.local.keys() == {
        "mine"
    }


def test_without_tasks_there_is_pretraining_and_no_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, NO_TASKS)
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    done = checked(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("params.yaml: ok, but with no tasks only to pre-train: ")
    assert ALONE in done.stdout
    require_ready(path, read_plan(tmp_path, ["pretrain", "evaluate_pretraining"]).stages)
    monkeypatch.chdir(tmp_path)
    for targets in ([], ["--targets", "register"]):
        assert main(targets) == 1
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert f"params.yaml:{line_of(path.read_text(), 'tasks: {}')}: tasks: the report needs one" in said
        assert f"python -m flows {ALONE} (make demo ARGS='{ALONE}')" in said


def test_the_flow_refuses_it_whoever_starts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A schedule does not go through `python -m flows`; without Prefect's server, the flow as a function."""
    from flows import pipeline

    monkeypatch.chdir(tmp_path)
    write(tmp_path, NO_TASKS)
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    monkeypatch.setattr(pipeline, "_mark_killed_run", lambda root: None)
    monkeypatch.setattr(pipeline, "get_run_logger", lambda: logging.getLogger("test"))
    state = pipeline.pipeline.fn()
    assert state.is_failed()
    assert "tasks: the report needs one, and there is none" in state.message
