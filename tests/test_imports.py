"""The rooms: imports point down only, and importing a module brings nothing heavy along that it does not need."""

import ast
import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
from stage_runs import environment_of, workspace

from lightning_modules.lightning import UNUSED

REPOSITORY = Path(__file__).parents[1]
ROOMS = ("lightning_modules", "stages", "flows")  # from the bottom to the top
ORCHESTRATORS = {"prefect", "dvc", "mlflow"}
HEAVY = {"torch", "pytorch_lightning", "datasets", "mlflow", "prefect", "dvc", "matplotlib", "transformers"}
# What trains needs torch as soon as it is imported, and what MLflow loads to serve a model; nothing else does.
NEED_TORCH = {
    *("stages.training", "stages.pretrain", "stages.finetune", "stages.served_model"),
    *("stages.trial", "stages.overfit", "stages.find_learning_rate", "stages.fitting", "stages.training_job"),
}


def module_names(room: str) -> list[str]:
    paths = sorted((REPOSITORY / room).rglob("*.py"))
    parts = [path.relative_to(REPOSITORY).with_suffix("").parts for path in paths]
    return [".".join(part[:-1] if part[-1] == "__init__" else part) for part in parts]


def imported_by(name: str) -> set[str]:
    """What a module imports, anywhere in it, lazily or not."""
    path = REPOSITORY / Path(*name.split("."))
    tree = ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: imports are absolute here"
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def top_levels(name: str) -> set[str]:
    return {module.split(".")[0] for module in imported_by(name)}


def loaded_after(*names: str) -> set[str]:
    """The top-level modules in a fresh interpreter after importing `names`."""
    code = f"import sys, {', '.join(names)}; print(' '.join({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_down_only(room: str) -> None:
    forbidden = {
        "lightning_modules": {"stages", "flows", *ORCHESTRATORS},
        "stages": {"flows", "prefect"},
        "flows": set(),
    }[room]
    names = module_names(room)
    assert len(names) > 5
    wrong = {name: found for name in names if (found := top_levels(name) & forbidden)}
    assert not wrong


def test_the_transformer_knows_itself_and_torch_alone() -> None:
    allowed = {*sys.stdlib_module_names, "torch"}
    for name in module_names("lightning_modules/transformer"):
        own = {module for module in imported_by(name) if module.startswith("lightning_modules")}
        assert all(module.startswith("lightning_modules.transformer") for module in own), name
        assert top_levels(name) - {"lightning_modules"} <= allowed, name


def test_importing_the_transformer_loads_torch_but_not_lightning() -> None:
    loaded = loaded_after(*module_names("lightning_modules/transformer"))
    assert "torch" in loaded
    assert not loaded & {"pytorch_lightning", "lightning_fabric", "tokenizers", "safetensors"}


def test_counting_the_parameters_of_a_model_does_not_load_torchs_compiler() -> None:
    script = """
        import sys
        from lightning_modules.flops import parameters
        from lightning_modules.transformer.presets import preset
        for positions in ("sinusoidal", "learned", "rotary", "alibi", "relative"):
            assert parameters(preset("small-encoder-decoder", vocab_size=100, positions=positions))["encoder"] > 1000
        assert not {"sympy", "torch._dynamo"} & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", dedent(script)], cwd=REPOSITORY, check=True)


def test_mlflow_reports_to_nobody_how_it_is_used() -> None:
    script = "import stages.tracking, mlflow.telemetry; assert mlflow.telemetry.get_telemetry_client() is None"
    environment = {"PATH": os.environ["PATH"]}  # without what tells MLflow that this is a test
    subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, env=environment, check=True)


def test_importing_all_that_learns_loads_no_orchestrator_and_no_data_library() -> None:
    names = module_names("lightning_modules")
    assert {"lightning_modules", "lightning_modules.trainer", "lightning_modules.text_to_text"} <= set(names)
    loaded = loaded_after(*names)
    assert "pytorch_lightning" in loaded
    assert not loaded & {*ORCHESTRATORS, "pyarrow", "datasets", "pydantic", "sacrebleu"}
    assert not loaded & UNUSED


def test_libraries_kept_from_lightning_are_there_for_others() -> None:
    assert loaded_after("lightning_modules.lightning", "scipy.signal", "matplotlib.pyplot", "transformers") >= UNUSED


def test_a_training_that_compiles_nothing_loads_no_compiler_and_one_that_does_is_known(tmp_path: Path) -> None:
    folder = workspace(tmp_path / "work", pretrain={"steps": 6, "warmup_steps": 2, "validate_every": 3})
    code = dedent("""
        import runpy, sys
        sys.argv = ["stages.pretrain"]
        runpy.run_module("stages.pretrain", run_name="__main__")
        import torch
        from lightning_modules.optim import OPTIMIZERS
        for make in OPTIMIZERS.values():
            model = torch.nn.Linear(3, 3)
            optimizer = make(model, 0.1, 0.1)
            optimizer.zero_grad()
            model(torch.ones(3)).sum().backward()
            optimizer.step()
            optimizer.load_state_dict(optimizer.state_dict())
        loaded = {"torch._dynamo", "torch._inductor", "torch.distributed.tensor", "sympy"} & set(sys.modules)
        assert not loaded, loaded
        from lightning_fabric.wrappers import _unwrap_compiled
        assert _unwrap_compiled(model) == (model, None)
        compiled = torch.compile(model, backend="eager")
        assert _unwrap_compiled(compiled)[0] is model
        torch.testing.assert_close(compiled(torch.ones(3)), model(torch.ones(3)))
    """)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment_of({}), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("program", ["stages.params", "flows.status"])
def test_a_program_has_the_collector_look_rarely_and_not_at_its_end_and_a_library_leaves_it_alone(
    program: str, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, gc\n"
        "usual = gc.get_threshold()\n"
        "atexit.register(lambda: print(gc.get_freeze_count() > 0, gc.get_threshold()[0] > usual[0]))\n"
    )
    path = os.pathsep.join((str(tmp_path), str(REPOSITORY)))
    for command, wanted in (["-m", program, "--help"], "True True"), (["-c", f"import {program}"], "False False"):
        done = subprocess.run(
            [sys.executable, *command],
            env=os.environ | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.splitlines()[-1] == wanted


def test_stages_that_need_no_torch_load_nothing_heavy() -> None:
    names = sorted(set(module_names("stages")) - NEED_TORCH)
    assert {"stages.prepare", "stages.tokenizer", "stages.tokenize", "stages.evaluate", "stages.tracking"} <= set(names)
    heavy = loaded_after(*names) & HEAVY
    assert not heavy, {name: found for name in names if (found := loaded_after(name) & HEAVY)}


def test_flows_load_nothing_that_learns() -> None:
    names = module_names("flows")
    assert not loaded_after(*names) & {"torch", "pytorch_lightning", "datasets", "mlflow", "matplotlib"}
    # The command line answers "nothing to do" before Prefect is even loaded, which takes seconds.
    assert "prefect" not in loaded_after("flows.__main__")
