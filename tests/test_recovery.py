"""Backups, and what may break, as docs/operating.md says it, with its commands: a lost database, a lost machine."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from mlflow_tools import history, runs
from toy_project import ROOT, make_project, run_flows

from flows.run_stage import child_environment
from stages.tracking import stage_run
from stages.tracking_store import tracking_uri

PAGE = (ROOT / "docs/operating.md").read_text(encoding="utf-8")


def command(begins: str) -> str:
    """The command of the page that begins so."""
    (found,) = {line.strip() for line in re.findall(r"^[^#\n]+", PAGE, re.M) if line.startswith(begins)}
    return found


def shell(folder: Path, line: str) -> str:
    """Runs a command in `folder` as the page's reader does, with the environment's Python first."""
    words = [word.replace(".venv/bin/python", sys.executable) for word in shlex.split(line)]
    environment = child_environment({"PYTHONPATH": str(ROOT)})
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


STAGE = """
import sys
from stages.tracking import stage_run
with stage_run(sys.argv[1]) as run:
    run.log_metrics({"records": 2.0})
"""


def test_a_database_that_breaks_is_said_and_its_backup_takes_up_what_came_after(study: Path) -> None:
    (study / "stage.py").write_text(STAGE)
    with stage_run("fetch@a"):
        shell(study, command(".venv/bin/python -c"))  # while a run writes
    (study / ".pipeline/mlflow.db").write_bytes(b"not a database" * 1000)
    said = shell(study, ".venv/bin/python stage.py prepare").splitlines()
    (warning,) = [line for line in said if line.startswith("warning: ")]
    assert "cannot take it" in warning
    assert "file is not a database" in warning
    shell(study, command("mv mlflow-backup.db"))
    assert "nothing waits" in shell(study, command(".venv/bin/python -m stages.tracking"))
    uri = tracking_uri(study).replace("/.pipeline", "/./.pipeline")  # MLflow keeps the connection to a file it knows
    made = runs(uri)
    assert made["prepare"].info.status == "FINISHED"
    assert history(uri, made["prepare"].info.run_id, "records") == [(0, 2.0)]
    assert "fetch@a" in made


def test_a_lost_machine_is_a_clone_and_a_pull(tmp_path: Path) -> None:
    """With the cloned project and DVC's remote, nothing has to run again."""
    workspace, bare, remote, again = (tmp_path / name for name in ("workspace", "code.git", "remote", "again"))
    workspace.mkdir()
    make_project(workspace)
    (workspace / ".gitignore").write_text("/out\n/.pipeline\n")
    shell(tmp_path, f"git init -q --bare -b main {bare}")
    for line in (
        "git init -q -b main",
        "git config user.email a@b.c",
        "git config user.name a",
        "dvc init -q",
        f"dvc remote add -d backup {remote}",
        "dvc repro -q",
        "git add -A",
        "git commit -qm first",
        f"git remote add origin {bare}",
        "git push -q -u origin main",
        command("dvc push"),
    ):
        shell(workspace, line)
    made = {path.name: path.read_bytes() for path in (workspace / "out").iterdir()}
    shutil.rmtree(workspace)

    shell(tmp_path, f"git clone -q {bare} {again}")
    shell(again, command("dvc pull"))
    assert {path.name: path.read_bytes() for path in (again / "out").iterdir()} == made
    status, output = run_flows(again)
    assert status == 0, output
    assert output.count("unchanged") == len(made)
