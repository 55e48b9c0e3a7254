"""Each stage in dvc.yaml lists the code that decides its outputs, so that an edited module reruns its stages."""

import ast
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent
STAGES = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
# Code that every stage uses and that decides no output: a wrong edit here breaks a run but cannot change a result.
DECIDES_NOTHING = {
    f"stages/{name}.py"
    for name in (
        *("__init__", "console", "delivery", "dvc_lock", "lineage", "outputs", "params", "params_data"),
        *("params_checks", "params_errors", "params_file", "params_ready", "params_schema", "ranks", "sender"),
        *("session", "spool", "tracking", "tracking_store"),
    )
} | {"lightning_modules/__init__.py", "lightning_modules/errors.py"}

LOADED_BY_PATH = {"stages/register.py": {ROOT / "stages/served_model.py"}}  # MLflow is given the file


def first_party_imports(path: Path) -> set[Path]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            file = ROOT / (name.replace(".", "/") + ".py")
            package = ROOT / name.replace(".", "/") / "__init__.py"
            found |= {candidate for candidate in (file, package) if candidate.exists()}
    return found


def code_behind(module: Path) -> set[str]:
    """A module and all of ours that it imports, at the top or later, and what those import."""
    waiting, seen = {module}, set()
    while waiting:
        path = waiting.pop()
        name = path.relative_to(ROOT).as_posix()
        if name in seen or name in DECIDES_NOTHING:
            continue
        seen.add(name)
        waiting |= first_party_imports(path) | LOADED_BY_PATH.get(name, set())
    return seen


@pytest.mark.parametrize("stage", STAGES)
def test_stage_lists_the_code_that_decides_its_outputs(stage: str) -> None:
    definition = STAGES[stage].get("do", STAGES[stage])
    module = definition["cmd"].split()[2]
    needed = code_behind(ROOT / (module.replace(".", "/") + ".py"))
    listed = {dep for dep in definition["deps"] if dep.startswith(("stages", "lightning_modules"))}
    covered = {name for name in needed if name in listed or Path(name).parent.as_posix() in listed}
    unused = {dep for dep in listed if not any(name == dep or name.startswith(f"{dep}/") for name in needed)}
    assert (needed - covered, unused) == (set(), set())
