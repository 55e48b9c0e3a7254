"""A copy of this repository for tests that use it as a person would: with git, make, dvc and its environment."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]


def copy_of_repository(folder: Path) -> Path:
    """What git tracks or would track, committed."""
    root = folder / "repository"
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split("\0")  # fmt: skip
    for name in filter(None, tracked):
        if (ROOT / name).is_file():  # not one that was deleted and not yet committed
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, root / name)  # make compares the times of the lock and of .venv
    (root / ".venv").symlink_to(sys.prefix)
    shell(root, "git init -q && git add -A && git -c user.name=t -c user.email=t@example.org commit -qm start")
    return root


def environment(root: Path) -> dict[str, str]:
    """This process's, without what is told to these tests alone: by `make test ARGS=…`, too, for a make would obey."""
    ours = ("MLFLOW", "PIPELINE", "PREFECT", "DVC", "MAKE", "MFLAGS", "ARGS")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    return kept | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def shell(root: Path, command: str, status: int = 0, timeout: float = 1500) -> str:
    """Runs a line of shell as a person would; gives what it printed."""
    done = subprocess.run(
        command, shell=True, cwd=root, env=environment(root), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, timeout=timeout,
    )  # fmt: skip
    assert done.returncode == status, done.stdout
    return done.stdout


def end_all_in(root: Path) -> None:
    """Kills what still runs there, or in a folder in it."""
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(root):
                process.kill()
        except psutil.Error:
            continue
