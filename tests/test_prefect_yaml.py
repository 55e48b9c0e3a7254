"""prefect.yaml and automations.yaml fit the flows and the stages that they name."""

import ast
import shutil
from pathlib import Path
from typing import Any

import pytest
from prefect.client.schemas.schedules import construct_schedule
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import validate
from ruamel.yaml import YAML
from toy_project import ROOT

from flows.graph import read_plan
from flows.overrides import overridden
from flows.serve import read_deployments

DEPLOYMENTS: list[dict[str, Any]] = YAML(typ="safe").load(ROOT / "prefect.yaml")["deployments"]


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(ROOT)  # entrypoints are relative to it
    return ROOT


def test_names_are_unique_and_the_promised_ones_are_there() -> None:
    names = [deployment["name"] for deployment in DEPLOYMENTS]
    assert len(names) == len(set(names))
    assert {"nightly", "weekly-pretraining", "data-refresh", "evaluate-champion", "on-demand"} <= set(names)


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda deployment: deployment["name"])
def test_a_deployment_fits_its_flow(root: Path, tmp_path: Path, deployment: dict[str, Any]) -> None:
    parameters = deployment.get("parameters") or {}
    flow = load_flow_from_entrypoint(deployment["entrypoint"])
    assert flow.validate_parameters(parameters).items() >= parameters.items()
    schema = parameter_schema(flow).model_dump_for_openapi()
    assert parameters.keys() <= schema["properties"].keys()
    assert not validate(parameters, schema)
    assert all(described.get("description") for described in schema["properties"].values())
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(root / name, tmp_path)
    if targets := parameters.get("targets"):
        assert set(read_plan(tmp_path, targets).stages) >= {"prepare"}
    overridden((root / "params.yaml").read_text(), parameters.get("overrides") or {})


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda deployment: deployment["name"])
def test_a_deployment_says_what_it_is_and_runs_once_at_a_time(deployment: dict[str, Any]) -> None:
    assert deployment["description"]
    assert deployment["tags"]
    assert deployment["concurrency_limit"] == {"limit": 1, "collision_strategy": "CANCEL_NEW"}
    assert deployment["work_pool"]["name"] == "workstation"
    assert int(deployment["work_pool"]["job_variables"]["env"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"]) == 30


def test_what_is_served_is_what_is_deployed(root: Path) -> None:
    served = {deployment.name: deployment for deployment in read_deployments(root / "prefect.yaml")}
    assert list(served) == [deployment["name"] for deployment in DEPLOYMENTS]
    for written in DEPLOYMENTS:
        deployment = served[written["name"]]
        assert deployment.entrypoint == written["entrypoint"]
        assert deployment.description == written["description"]
        assert deployment.tags == written["tags"]
        assert deployment.parameters == (written.get("parameters") or {})
        schedules = written.get("schedules") or []
        assert [schedule.schedule for schedule in deployment.schedules or []] == [
            construct_schedule(**{key: value for key, value in schedule.items() if key in ("cron", "timezone")})
            for schedule in schedules
        ]


def test_the_watch_has_measured_what_is_new_before_the_night_takes_it_in() -> None:
    crons = {written["name"]: written["schedules"][0]["cron"] for written in DEPLOYMENTS if "schedules" in written}
    assert int(crons["watch"].split()[0]) < int(crons["nightly"].split()[0]) <= int(crons["watch"].split()[0]) + 20


def test_the_data_alone_is_refreshed_with_its_check_and_without_training(root: Path, tmp_path: Path) -> None:
    (targets,) = (written["parameters"]["targets"] for written in DEPLOYMENTS if written["name"] == "data-refresh")
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(root / name, tmp_path)
    stages = {name.partition("@")[0] for name in read_plan(tmp_path, targets).stages}
    assert {"fetch", "prepare", "leakage", "tokenizer", "tokenize"} <= stages
    assert not {"pretrain", "finetune", "scratch", "register"} & stages


def test_the_end_of_a_run_is_a_sign_of_life_under_each_of_its_names() -> None:
    """Prefect names the event by the state: a run that ended under a name left out would be called crashed."""
    (automation,) = YAML(typ="safe").load(ROOT / "automations.yaml")["automations"]
    expected = {event.removeprefix("prefect.flow-run.") for event in automation["trigger"]["expect"]}
    assert {"Completed", "Failed", "Crashed", "Cancelled", "TimedOut"} <= expected
    for file in (ROOT / "flows").glob("*.py"):
        for flow in flows_of(ast.parse(file.read_text())):
            assert names_of_states(flow) <= expected, file.name


def flows_of(tree: ast.Module) -> list[ast.Module]:
    """The module without its tasks, if there is a flow in it: what tasks end in is no state of a flow."""
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    if not any("flow" in decorators(function) for function in functions):
        return []
    return [ast.Module([node for node in tree.body if "task" not in decorators(node)], [])]


def decorators(node: ast.AST) -> set[str]:
    listed = node.decorator_list if isinstance(node, ast.FunctionDef) else []
    names = [decorator.func if isinstance(decorator, ast.Call) else decorator for decorator in listed]
    return {name.id for name in names if isinstance(name, ast.Name)}


def names_of_states(tree: ast.AST) -> set[str]:
    """Every `name` that a final state is given."""
    found: set[str] = set()
    for call in ast.walk(tree):
        states = ("Completed", "Cancelled", "Failed", "Crashed")
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in states:
            for keyword in call.keywords:
                if keyword.arg == "name":
                    found |= {node.value for node in ast.walk(keyword.value) if isinstance(node, ast.Constant)}
    return found
