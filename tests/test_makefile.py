"""The Makefile's own rules, by a real make, on an environment whose programs are stand-ins."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from toy_project import ROOT

PYTHON = """#!/bin/sh
case "$*" in
  *"config get"*) [ -z "$TOLD" ] || echo "$TOLD" ;;
  *"import pip"*) exit {status} ;;
esac
"""
UV = '#!/bin/sh\nprintf "%s\\n" "$UV_FIND_LINKS" >> asked\n'


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder in which everything was installed, as far as make can see."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "requirements.lock").write_text("uv==1.0\n")
    (tmp_path / "requirements-torch.txt").touch()
    (tmp_path / ".venv/bin").mkdir(parents=True)
    write(tmp_path / ".venv/bin/python", PYTHON.format(status=0))
    write(tmp_path / ".venv/bin/uv", UV)
    (tmp_path / ".venv/installed").touch()
    return tmp_path


def write(program: Path, text: str) -> None:
    program.write_text(text)
    program.chmod(0o755)


def make(project: Path, *arguments: str, **environment: str) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_", "MAKE"))}
    command = ["make", "--no-print-directory", ".venv/installed", *arguments]
    return subprocess.run(
        command, cwd=project, env=clean | environment, capture_output=True, text=True, check=True
    ).stdout


def test_what_is_installed_is_made_anew_where_its_python_has_gone(project: Path) -> None:
    """As when the system's is upgraded: the link leads to nothing, or to a Python that has none of the packages."""
    assert "up to date" in make(project, "--dry-run")
    write(project / ".venv/bin/python", PYTHON.format(status=1))
    assert "creating .venv" in make(project, "--dry-run")
    (project / ".venv/installed").touch()
    (project / ".venv/bin/python").unlink()
    (project / ".venv/bin/python").symlink_to("/usr/bin/python3.nowhere")
    assert "creating .venv" in make(project, "--dry-run")


@pytest.mark.parametrize("told", ["PIP_FIND_LINKS", "TOLD"])
def test_uv_is_told_of_all_folders_of_wheels_that_pip_knows(project: Path, told: str) -> None:
    """pip has them apart by spaces in its variable, and by lines in its configuration; uv by commas."""
    (project / ".venv/installed").unlink()
    make(project, **{told: "/wheels /more" if told == "PIP_FIND_LINKS" else "/wheels\n/more"})
    assert (project / "asked").read_text().split() == ["/wheels,/more"] * 2
