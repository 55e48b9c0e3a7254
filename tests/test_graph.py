import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from toy_project import ROOT, make_project, reproduce

from flows.graph import read_outputs, read_plan
from flows.overrides import overridden
from flows.workspace import WorkspaceHeld
from lightning_modules.errors import PipelineError

TASKS = ("question_answering", "summarization", "translation")


def test_stages_have_their_edges_and_meta(tmp_path: Path) -> None:
    stages = read_plan(make_project(tmp_path)).stages
    assert set(stages) == {"prepare", "report", *(f"finetune@{task}" for task in TASKS)}
    assert stages["finetune@translation"].upstream == ("prepare",)
    assert stages["report"].upstream == ("finetune@summarization", "finetune@translation")
    plan = read_plan(tmp_path)
    assert plan.stages_to_come("report") < plan.stages_to_come("finetune@translation") < plan.stages_to_come("prepare")
    assert stages["prepare"].devices is None
    assert stages["finetune@translation"].devices == 1
    assert stages["finetune@translation"].retries == 1
    assert stages["finetune@translation"].timeout_seconds == 300
    assert stages["report"].timeout_seconds is None
    assert stages["finetune@translation"].description == "Fine-tune for translation"


def test_upstream_comes_first(tmp_path: Path) -> None:
    seen: set[str] = set()
    for name, stage in read_plan(make_project(tmp_path)).stages.items():
        assert seen.issuperset(stage.upstream)
        seen.add(name)


def test_a_new_stage_shows_up(tmp_path: Path) -> None:
    with (make_project(tmp_path) / "dvc.yaml").open("a") as file:
        file.write("  publish: {cmd: 'true', deps: [out/report]}\n")
    assert read_plan(tmp_path).stages["publish"].upstream == ("report",)


def test_only_what_depends_on_a_change_is_stale(tmp_path: Path) -> None:
    make_project(tmp_path)
    assert read_plan(tmp_path).stale == set(read_plan(tmp_path).stages)
    reproduce(tmp_path)
    assert read_plan(tmp_path).stale == set()
    params = tmp_path / "params.yaml"
    params.write_text("# a comment\n" + params.read_text())
    assert read_plan(tmp_path).stale == set()
    before = params.read_text()
    params.write_text(overridden(before, {"tasks.translation.steps": 12345}))
    assert read_plan(tmp_path).stale == {"finetune@translation"}
    params.write_text(overridden(before, {"prepare.min_characters": 12345}))
    assert read_plan(tmp_path).stale == {"prepare"}


def test_targets_bring_what_they_need(tmp_path: Path) -> None:
    make_project(tmp_path)
    assert set(read_plan(tmp_path, ["finetune@translation"]).stages) == {"prepare", "finetune@translation"}
    assert set(read_plan(tmp_path, ["finetune"]).stages) == {"prepare", *(f"finetune@{task}" for task in TASKS)}


def test_unknown_target(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="no stage 'finetun'; did you mean finetune"):
        read_plan(make_project(tmp_path), ["finetun"])


@pytest.mark.parametrize("wrong", ["retries: many", "retries: -1", "timeout_minutes: 0", "devices: some"])
def test_wrong_meta_names_stage_and_key(tmp_path: Path, wrong: str) -> None:
    (tmp_path / "dvc.yaml").write_text(f"stages: {{a: {{cmd: 'true', meta: {{{wrong}}}}}}}\n")
    with pytest.raises(PipelineError, match=rf"stage a: meta\.{wrong.partition(':')[0]}"):
        read_plan(tmp_path)


@pytest.mark.parametrize(
    "text", ["stages: [", "stages: {a: {cmd: 'true', depends: [b]}}", "stages: {a: {cmd: '${b}'}}"]
)
def test_a_dvc_yaml_that_dvc_refuses_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "dvc.yaml").write_text(text)
    with pytest.raises(PipelineError, match=r"dvc\.yaml") as caught:
        read_plan(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("left", ['{"write": {"/out": {"pid": 1, "c', "", "[]"])
def test_what_a_full_disk_left_of_dvcs_list_of_holders_stops_nobody(tmp_path: Path, left: str) -> None:
    read_plan(make_project(tmp_path))
    reproduce(tmp_path)
    (tmp_path / ".dvc/tmp/rwlock").write_text(left)
    assert read_plan(tmp_path).stale == set()
    reproduce(tmp_path)


def test_another_dvc_command_holds_the_workspace(tmp_path: Path) -> None:
    before = read_plan(make_project(tmp_path))
    held = {str(tmp_path / name): {"pid": os.getpid(), "cmd": "dvc repro"} for name in ("out/prepare", "dvc.yaml")}
    readers = {name: [holder] for name, holder in held.items()}
    (tmp_path / ".dvc/tmp/rwlock").write_text(json.dumps({"write": held, "read": readers}))
    with pytest.raises(WorkspaceHeld, match=rf"another dvc command is at work .*{os.getpid()}") as caught:
        read_plan(tmp_path)
    assert "remove" not in str(caught.value)
    (tmp_path / ".dvc/tmp/rwlock").unlink()
    assert read_plan(tmp_path) == before


def test_no_dvc_yaml(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"no dvc\.yaml"):
        read_plan(tmp_path)


def test_an_archive_without_git(tmp_path: Path) -> None:
    (make_project(tmp_path) / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").touch()  # as in the repository, where git is expected
    assert "prepare" in read_plan(tmp_path).stages
    reproduce(tmp_path)
    assert read_plan(tmp_path).stale == set()


def test_outputs(tmp_path: Path) -> None:
    assert set(read_outputs(make_project(tmp_path))) == {
        tmp_path / "out" / name for name in ("prepare", "report", *TASKS)
    }


def test_nothing_but_the_flow_imports_prefect() -> None:
    """Or the no-op of `make demo` would take seconds more."""
    modules = {file.stem for file in (ROOT / "flows").glob("*.py")} - {
        "__init__",
        "artifacts",
        "notify",
        "pipeline",
        "stopping",
        "sweep_flow",
        "watch",
    }
    code = f"import sys, {', '.join(f'flows.{module}' for module in modules)}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert "flows.run_stage" in loaded
    assert not {"prefect", "mlflow", "torch", "matplotlib", "datasets"} & set(loaded)
