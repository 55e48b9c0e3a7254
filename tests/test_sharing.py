"""Data and models shared between clones with DVC: what a person types, in real repositories with a real remote."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from toy_project import ROOT, make_project

from flows.overrides import overridden
from flows.run_stage import child_environment

GIT = "git -c user.name=t -c user.email=t@example.org"
IGNORED = "/out\n/.pipeline\n__pycache__/\n"
RAN = re.compile(r"^Running stage '([^']+)':$", re.MULTILINE)
TRANSLATION = "finetune@translation"


def typed(folder: Path, command: str) -> str:
    """What a line of shell prints; its failure is an error."""
    environment = child_environment({"PYTHONPATH": str(ROOT)})
    done = subprocess.run(
        command, shell=True, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def ran(folder: Path, command: str) -> set[str]:
    """The stages whose commands a `dvc repro` has run."""
    return set(RAN.findall(typed(folder, command)))


def change(folder: Path, steps: int) -> None:
    """Gives the translation another number of steps."""
    params = folder / "params.yaml"
    params.write_text(overridden(params.read_text(), {"tasks.translation.steps": steps}))


def cached(folder: Path) -> set[str]:
    """The files in the cache of a clone."""
    return {str(path.relative_to(folder)) for path in (folder / ".dvc/cache/files").rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository whose first commit has the code alone, the second what a run made, which was pushed."""
    folder = tmp_path_factory.mktemp("origin")
    make_project(folder)
    (folder / ".gitignore").write_text(IGNORED)
    typed(folder, "git init -q -b main && dvc init -q")
    shutil.copy(ROOT / ".dvc/config", folder / ".dvc/config")
    typed(folder, f"dvc remote add -q --force --default storage {tmp_path_factory.mktemp('remote')}")
    typed(folder, f"git add -A && {GIT} commit -qm code")
    assert len(ran(folder, "dvc repro")) == 5
    typed(folder, f"git add -A && {GIT} commit -qm run && dvc push -q --run-cache")
    return folder


@pytest.fixture
def clone(origin: Path, tmp_path: Path) -> Path:
    typed(tmp_path, f"git clone -q {origin} clone")
    return tmp_path / "clone"


def test_a_clone_pulls_and_has_nothing_to_do(clone: Path) -> None:
    typed(clone, "dvc pull --run-cache")
    assert (clone / "out/report").read_text() == "report"
    assert ran(clone, "dvc repro") == set()
    assert typed(clone, "git status --short") == ""


def test_without_the_lock_the_run_cache_knows_what_was_made(clone: Path) -> None:
    typed(clone, "git checkout -q HEAD~1")
    assert not (clone / "dvc.lock").exists()
    assert ran(clone, "dvc repro --pull") == set()
    assert (clone / "out/translation").read_text() == "translation"
    assert (clone / "dvc.lock").read_text() == typed(clone, "git show main:dvc.lock")
    typed(clone, "git checkout -q --force main && dvc status")


def test_a_worker_with_an_empty_disk_runs_one_stage(clone: Path, tmp_path: Path) -> None:
    change(clone, 321)
    assert ran(clone, f"dvc repro --pull --single-item {TRANSLATION}") == {TRANSLATION}
    assert {path.name for path in (clone / "out").iterdir()} == {"prepare", "translation"}  # what it reads, and makes
    assert len(cached(clone)) == 2
    typed(clone, f"dvc push -q --run-cache {TRANSLATION} && {GIT} commit -qam translation")

    typed(tmp_path, "git clone -q clone other")
    other = tmp_path / "other"
    assert ran(other, "dvc repro --allow-missing --dry") == set()
    typed(other, "dvc pull -q report")
    assert {path.name for path in (other / "out").iterdir()} == {"report"}
    change(other, 322)
    assert ran(other, "dvc repro --pull --allow-missing") == {TRANSLATION}
    assert not (other / "out/summarization").exists()  # nothing that is not read was fetched


def test_collecting_garbage_keeps_what_is_needed(clone: Path) -> None:
    (clone / "work.py").write_text(
        (clone / "work.py").read_text().replace(".write_text(name)", ".write_text(name + '!')")
    )
    typed(clone, "dvc pull -q --run-cache")
    old = cached(clone)
    assert len(ran(clone, "dvc repro")) == 5
    both = cached(clone)
    assert old < both
    checkpoint = clone / ".pipeline/checkpoints/finetune@translation/step-20.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()

    typed(clone, "dvc gc --workspace --dry --force")
    assert cached(clone) == both
    typed(clone, "dvc gc --all-commits --workspace --force")  # the last run is in no commit yet
    assert cached(clone) == both
    typed(clone, "dvc gc --workspace --force")
    assert cached(clone) == both - old
    assert checkpoint.exists()
    assert ran(clone, "dvc repro") == set()
    typed(clone, "git checkout -q --force . && dvc pull -q")  # the remote still has what the commit names
    assert (clone / "out/report").read_text() == "report"
    assert checkpoint.exists()


def test_the_shipped_remote_works_in_a_fresh_checkout(tmp_path: Path) -> None:
    make_project(tmp_path)
    (tmp_path / ".gitignore").write_text(IGNORED)
    typed(tmp_path, "git init -q && dvc init -q")
    shutil.copy(ROOT / ".dvc/config", tmp_path / ".dvc/config")
    typed(tmp_path, "dvc repro -q prepare && dvc push prepare")
    shutil.rmtree(tmp_path / ".dvc/cache")
    (tmp_path / "out/prepare").unlink()
    typed(tmp_path, "dvc pull prepare")
    assert (tmp_path / "out/prepare").read_text() == "prepare"
