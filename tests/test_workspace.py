import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from dvc.env import DVC_STAGE
from processes import still_works
from ruamel.yaml import YAML
from toy_project import ROOT

from flows.overrides import overridden
from flows.workspace import WorkspaceHeld, workspace
from lightning_modules.errors import PipelineError
from stages.params import Params, load_params

HOLD = """
import os, sys, subprocess
from pathlib import Path
from flows.process_tree import ProcessTree
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


def loaded(text: str) -> dict[str, Any]:
    found: dict[str, Any] = YAML(typ="safe").load(text)
    return found


def test_params_are_changed_for_the_run_only(root: Path) -> None:
    before = (root / "params.yaml").read_bytes()
    with workspace(root, {"pretrain.steps": 77777, "model.norm": "post"}):
        during = (root / "params.yaml").read_text()
        assert "steps: 77777 " in during
        assert "# optimiser steps" in during
        assert "norm: post" in during
    assert (root / "params.yaml").read_bytes() == before


def test_an_edit_during_the_run_stays(root: Path) -> None:
    """And nothing of what the run overrode, unless the edit is about that."""
    before, said = (root / "params.yaml").read_text(), list[str]()
    changes = {"pretrain.steps": 77777, "seed": 5, "model.norm": "post", "finetune.batch_tokens": 999}
    with workspace(root, changes, tell=said.append):
        edited = (root / "params.yaml").read_text().replace("seed: 5 ", "seed: 2 ")
        (root / "params.yaml").write_text(edited + "# mine\n")
    now = (root / "params.yaml").read_text()
    assert now.endswith("# mine\n")
    assert loaded(now) == loaded(before) | {"seed": 2}
    assert len(said) == 1
    assert said[0].startswith("params.yaml was edited during a run: the edit stays, the run's own ")
    assert all(key in said[0] for key in changes if key != "seed")
    assert "seed" not in said[0]


def test_an_edit_that_is_no_yaml_stays_and_the_run_is_taken_back_once_it_is_mended(root: Path) -> None:
    before, said = (root / "params.yaml").read_text(), list[str]()
    with workspace(root, {"pretrain.steps": 77777}, tell=said.append):
        during = (root / "params.yaml").read_text()
        (root / "params.yaml").write_text(during + "mine: [\n")
    assert (root / "params.yaml").read_text() == during + "mine: [\n"
    assert len(said) == 1
    assert "cannot be read: what it was before is in" in said[0]
    with (
        pytest.raises(PipelineError, match=r"params\.yaml:\d+: .*mend the YAML there"),
        workspace(root, {"pretrain.steps": 3}),
    ):
        pass
    (root / "params.yaml").write_text(during + "# mine\n")
    with workspace(root):
        assert loaded((root / "params.yaml").read_text()) == loaded(before)


def test_an_editor_that_was_open_before_the_run_has_nothing_to_take_back(root: Path) -> None:
    edited, said = (root / "params.yaml").read_text() + "# mine\n", list[str]()
    with workspace(root, {"pretrain.steps": 77777}, tell=said.append):
        (root / "params.yaml").write_text(edited)
    assert (root / "params.yaml").read_text() == edited
    assert said == []


def test_a_killed_run_is_tidied_up_by_the_next(root: Path) -> None:
    before = (root / "params.yaml").read_bytes()
    process = hold(root)
    assert b"steps: 77777 " in (root / "params.yaml").read_bytes()
    process.kill()
    process.communicate()
    with workspace(root):
        assert (root / "params.yaml").read_bytes() == before


def test_dvc_by_itself_does_not_take_a_killed_runs_values_for_the_users(root: Path) -> None:
    def stage(**changes: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "stages.params"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **changes}
        return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)

    by_dvc, process = {DVC_STAGE: "pretrain"}, hold(root)
    process.kill()
    process.communicate()
    refused = stage(**by_dvc)
    assert refused.returncode == 1
    assert "mv .pipeline/params.before.yaml params.yaml" in refused.stderr
    with (root / "params.yaml").open("a") as file:
        file.write("# mine\n")
    assert stage(**by_dvc).returncode == 1, "an edit leaves the run's values there"
    assert stage(**by_dvc, PIPELINE_RUN="1").returncode == stage().returncode == 0
    (root / ".pipeline/params.before.yaml").replace(root / "params.yaml")
    assert stage(**by_dvc).returncode == 0


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


def test_a_key_that_the_file_has_not_but_may_have_is_added(root: Path) -> None:
    before = (root / "params.yaml").read_bytes()
    assert b"  positions:" not in before
    changes = {"model.preset": "vaswani-base", "model.positions": "alibi", "model.heads": 2, "model.qk_norm": True}
    with workspace(root, changes):
        during = load_params(root / "params.yaml")
        config = during.model.config(vocab_size=600)
        assert (config.d_ff, config.positions, config.heads, config.qk_norm) == (2048, "alibi", 2, True)
        assert during.pretrain == load_params_of(root, before).pretrain
    assert (root / "params.yaml").read_bytes() == before


def load_params_of(root: Path, text: bytes) -> Params:
    (root / "other.yaml").write_bytes(text)
    return load_params(root / "other.yaml")


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("model.position", "alibi", r"no key 'model\.position'; did you mean model\.positions\?"),
        ("model.vocab_size", 700, r"no key 'model\.vocab_size'"),  # the tokenizer decides it
        ("model.positions", "alibbi", r"params\.yaml:[0-9]+: model\.positions: got 'alibbi', must be 'sinusoidal', "),
        ("model.architecture", "encoder", r"params\.yaml:[0-9]+: pretrain\.objective: span_corruption is not for"),
        ("model.heads", 3, r"params\.yaml:[0-9]+: model\.heads: 3 does not divide d_model"),
        ("tasks.translation.learning_speed", 1, r"no key 'tasks\.translation\.learning_speed'"),
    ],
)
def test_an_added_key_is_checked_like_the_others(root: Path, key: str, value: object, says: str) -> None:
    before = (root / "params.yaml").read_bytes()
    with pytest.raises(PipelineError, match=says), workspace(root, {key: value}):
        pass
    assert (root / "params.yaml").read_bytes() == before


def test_keys_are_added_to_sections_that_are_there_and_no_others() -> None:
    assert overridden("model: {preset: x}\n", {"model.norm": "post"}) == "model: {preset: x, norm: post}\n"
    with pytest.raises(PipelineError, match=r"no key 'model\.norm'"):
        overridden("a: {b: 1}\n", {"model.norm": "post"})


def test_whole_tables_may_be_replaced() -> None:
    assert overridden("a: {b: 1}\nc: 2\n", {"a": {"b": 3}, "c": [4]}) == "a:\n  b: 3\nc:\n- 4\n"


def test_a_second_run_is_refused_clearly(root: Path) -> None:
    process = hold(root)
    said: list[str] = []
    with (
        pytest.raises(WorkspaceHeld, match=f"process {process.pid}"),
        workspace(root, wait_seconds=0.5, tell=said.append),
    ):
        pass
    assert len(said) == 1
    process.communicate("")
    with workspace(root, wait_seconds=0.0):
        pass


LEADER = """
import pathlib, signal, subprocess, sys, time
code = "import time; print('up', flush=True); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stdout=subprocess.PIPE)
child.stdout.readline()
def save(*_):
    pathlib.Path("saved").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, {handler})
pathlib.Path("pids").write_text(str(child.pid) + " " + pathlib.Path("/proc/self").resolve().name)
print("up", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("handler", ["save", "signal.SIG_IGN"])
def test_what_the_stages_of_a_killed_run_still_do_is_ended_before_the_next(
    root: Path, monkeypatch: pytest.MonkeyPatch, handler: str
) -> None:
    """Also what has left their session, and what is deaf; and nothing of other workspaces."""
    monkeypatch.setattr("flows.workspace.GRACE_SECONDS", 20.0 if handler == "save" else 1.0)
    (root / "leader.py").write_text(LEADER.format(handler=handler))
    child = 'ProcessTree([sys.executable, "leader.py"], Path("."), os.environ, (lock,)).leader.stdout.readline()'
    (root / "other").mkdir()
    shutil.copy(ROOT / "params.yaml", root / "other")
    shutil.copy(root / "leader.py", root / "other")
    processes = [hold(folder, child) for folder in (root, root / "other")]
    for process in processes:
        process.kill()
        process.communicate()
    ours, others = ([int(pid) for pid in (folder / "pids").read_text().split()] for folder in (root, root / "other"))
    assert all(map(still_works, ours + others))
    said: list[str] = []
    with workspace(root, wait_seconds=30.0, tell=said.append):
        assert not any(map(still_works, ours))
        assert (root / "saved").exists() == (handler == "save")
    assert said[0] == "a run before was killed; ended 2 processes that its stages had left at work"
    assert all(map(still_works, others))
    with workspace(root / "other"):
        assert not any(map(still_works, others))


def test_a_stage_that_outlives_its_run_holds_the_workspace(root: Path) -> None:
    """Even one that cannot be found and ended, as on another machine."""
    start = "subprocess.Popen(['sleep', '600'], pass_fds=[lock], stdout=2)"
    process = hold(root, f"Path('pid').write_text(str({start}.pid))")
    process.kill()
    process.communicate()
    with pytest.raises(WorkspaceHeld, match="or a stage it started"), workspace(root, wait_seconds=0.5):
        pass
    os.kill(int((root / "pid").read_text()), signal.SIGKILL)
    with workspace(root):
        pass
