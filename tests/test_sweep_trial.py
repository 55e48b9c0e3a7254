"""The preparation of a sweep, and trials that are stopped: real stages and DVC, no Prefect, no MLflow."""

import fcntl
import threading
from pathlib import Path

import pytest
from processes import eventually
from ruamel.yaml import YAML
from sweep_project import DVC_YAML, RATES, make_sweep_project, write_sweep
from toy_project import ROOT

from flows.devices import DevicePool
from flows.sweep_definition import read_sweep
from flows.sweep_search import Search
from flows.sweep_trial import Lent, Place, TrialRunner
from flows.workspace import workspace
from lightning_modules.errors import Interrupted

# It tells which GPU it sees, and crashes the first time.
CRASHES_ONCE = 'echo "sees GPU $CUDA_VISIBLE_DEVICES" && mkdir tried && exit 3 || python work.py tokenize'


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / ".pipeline/sweeps/rates").mkdir(parents=True)
    return make_sweep_project(tmp_path)


def runner(project: Path) -> tuple[TrialRunner, Search]:
    sweep = read_sweep(project / write_sweep(project, "rates", RATES))
    folder = project / ".pipeline/sweeps/rates"
    search = Search(sweep, folder / "study.db")
    environment = {"COUNT": str(project / "count"), "PYTHONPATH": str(ROOT)}
    place = Place(project, folder / "copy", folder / "trials")
    return TrialRunner(sweep, search, place, environment, lambda trial: None), search


def test_what_all_trials_need_gets_a_gpu_of_its_own_and_a_second_try(project: Path) -> None:
    plan = DVC_YAML.replace("python work.py tokenize", f"{CRASHES_ONCE}\n    meta: {{retries: 1}}", 1)
    (project / "dvc.yaml").write_text(plan)
    locks = {name: project / f"gpu-{name}.lock" for name in "01"}
    lines: list[str] = []
    trials, _ = runner(project)
    with locks["0"].open("w") as held:  # by a stage of another workspace
        fcntl.flock(held, fcntl.LOCK_EX)
        trials.prepare(lines.append, DevicePool(["0", "1"], 0, locks))
    assert trials.ready
    assert [line for line in lines if line.startswith("sees GPU")] == ["sees GPU 1"] * 2
    assert (project / "count").read_text() == "tokenize preparation\n"


def test_a_sweep_that_is_stopped_before_it_has_prepared_prepares_no_more(project: Path) -> None:
    trials, search = runner(project)
    trials.stop()
    with pytest.raises(Interrupted):
        trials.prepare(lambda line: None, DevicePool([], 2))
    assert not (project / "count").exists()
    assert not trials.ready

    trial = search.ask()
    assert trial is not None
    assert trials.run(trial, lambda line: None, Lent()) is None, "an error of a trial that is stopped is no failure"
    assert search.ended() == []


def test_a_sweep_does_not_take_the_overrides_of_a_run_at_work(project: Path) -> None:
    lines: list[str] = []
    trials, _ = runner(project)
    thread = threading.Thread(target=trials.prepare, args=(lines.append, DevicePool([], 2)))
    with workspace(project, {"tokenizer.vocab_size": 777}):
        thread.start()
        eventually(lambda: any("holds this workspace" in line for line in lines) or not thread.is_alive())
    thread.join(120)
    params = YAML(typ="safe").load(project / ".pipeline/sweeps/rates/copy/params.yaml")
    assert params["tokenizer"] == YAML(typ="safe").load(ROOT / "params.yaml")["tokenizer"]
    assert params["pretrain"]["sequence_length"] == 64
