import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from toy_project import ROOT

from flows.workspace import overridden, workspace
from lightning_modules.errors import PipelineError

HOLD = """
import sys, subprocess
from pathlib import Path
from flows.workspace import workspace
with workspace(Path("."), {"pretrain.steps": 77777}) as lock:
    CHILD
    print("holding", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    return tmp_path


def hold(root: Path, child: str = "pass") -> "subprocess.Popen[str]":
    """Another process that holds the workspace until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD.replace("CHILD", child)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "holding\n"
    return process


def test_params_are_changed_for_the_run_only(root: Path) -> None:
    before = (root / "params.yaml").read_bytes()
    with workspace(root, {"pretrain.steps": 77777, "model.norm": "post"}):
        during = (root / "params.yaml").read_text()
        assert "steps: 77777 " in during
        assert "# optimiser steps" in during
        assert "norm: post" in during
    assert (root / "params.yaml").read_bytes() == before


def test_an_edit_during_the_run_stays(root: Path) -> None:
    with workspace(root, {"pretrain.steps": 77777}):
        edited = (root / "params.yaml").read_text().replace("seed: 1 ", "seed: 2 ")
        (root / "params.yaml").write_text(edited)
    assert (root / "params.yaml").read_text() == edited


def test_a_killed_run_is_tidied_up_by_the_next(root: Path) -> None:
    before = (root / "params.yaml").read_bytes()
    process = hold(root)
    assert b"steps: 77777 " in (root / "params.yaml").read_bytes()
    process.kill()
    process.communicate()
    with workspace(root):
        assert (root / "params.yaml").read_bytes() == before


def test_unknown_key_and_wrong_value(root: Path) -> None:
    before = (root / "params.yaml").read_bytes()
    with (
        pytest.raises(PipelineError, match=r"no key 'pretrain\.stepz'; did you mean pretrain\.steps"),
        workspace(root, {"pretrain.stepz": 1}),
    ):
        pass
    with pytest.raises(PipelineError, match=r"pretrain\.steps"), workspace(root, {"pretrain.steps": "many"}):
        pass
    assert (root / "params.yaml").read_bytes() == before


def test_whole_tables_may_be_replaced() -> None:
    assert overridden("a: {b: 1}\nc: 2\n", {"a": {"b": 3}, "c": [4]}) == "a:\n  b: 3\nc:\n- 4\n"


def test_a_second_run_is_refused_clearly(root: Path) -> None:
    process = hold(root)
    said: list[str] = []
    with (
        pytest.raises(PipelineError, match=f"process {process.pid}"),
        workspace(root, wait_seconds=0.5, on_wait=said.append),
    ):
        pass
    assert len(said) == 1
    process.communicate("")
    with workspace(root, wait_seconds=0.0):
        pass


def test_a_stage_that_outlives_its_run_holds_the_workspace(root: Path) -> None:
    start = "subprocess.Popen(['sleep', '600'], pass_fds=[lock], stdout=2)"
    process = hold(root, f"Path('pid').write_text(str({start}.pid))")
    process.kill()
    process.communicate()
    with pytest.raises(PipelineError, match="or a stage it started"), workspace(root, wait_seconds=0.5):
        pass
    os.kill(int((root / "pid").read_text()), signal.SIGKILL)
    with workspace(root):
        pass
