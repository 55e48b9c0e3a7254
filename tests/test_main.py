"""`python -m flows` as a person meets it. Its own Prefect server is started three times (10 s each)."""

import json
import signal
import subprocess
from pathlib import Path

import psutil
import pytest
from processes import eventually, still_works
from toy_project import make_project, reproduce, run_flows, set_mode, start_flows, write_metrics

from flows.server import answers


def test_nothing_to_do_is_said_without_a_server(tmp_path: Path) -> None:
    make_project(tmp_path)
    run_flows(tmp_path, "--targets", "nonsense")  # sets DVC up
    reproduce(tmp_path)
    write_metrics(tmp_path)
    status, output = run_flows(tmp_path)
    assert status == 0
    assert output.count("unchanged") == 5
    assert "12.3 [11.0, 13.5]" in output
    assert not (tmp_path / ".pipeline" / "prefect").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--targets", "pretain"], 1, "error: targets: dvc.yaml has no stage 'pretain'"),
        (["--set", "pretrain.stepz=1"], 1, "did you mean pretrain.steps?"),
        (["--set", "pretrain.steps=many"], 1, "pretrain.steps"),
        (["--set", "model.architecture=encoder"], 1, "not for model.architecture encoder, which learns masked_lm"),
        (["--set", "pretrain.steps"], 2, "is not KEY=VALUE"),
        (["--set", "pretrain.steps=[1"], 2, "is not a value"),
        (["--nonsense"], 2, "usage:"),
    ],
)
def test_a_wrong_command_is_one_clear_line(tmp_path: Path, arguments: list[str], status: int, said: str) -> None:
    got, output = run_flows(make_project(tmp_path), *arguments)
    assert got == status
    assert said in output
    assert "Traceback" not in output
    assert not (tmp_path / ".pipeline" / "prefect").exists()


def test_a_server_that_does_not_answer(tmp_path: Path) -> None:
    status, output = run_flows(make_project(tmp_path), PREFECT_API_URL="http://127.0.0.1:9/api")
    assert status == 1
    assert "no Prefect server answers at PREFECT_API_URL" in output
    assert "Traceback" not in output


def test_ctrl_c_stops_everything_and_the_same_command_goes_on(tmp_path: Path) -> None:
    process = start_flows(make_project(tmp_path, "checkpoints"), "--targets", "finetune@translation")
    eventually(lambda: (tmp_path / "pids").exists() or process.poll() is not None)
    assert process.poll() is None
    stage, _grandchild = (int(pid) for pid in (tmp_path / "pids").read_text().split())
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "the same command goes on from the last checkpoint" in output
    assert "Traceback" not in output
    assert (tmp_path / "checkpoint").read_text() == "saved"
    assert stage in {member.pid for member in family}
    assert [member for member in family if still_works(member.pid)] == []  # no orphan: stage, its children, server
    url = output.partition("Prefect UI: ")[2].split()[0]
    assert not answers(f"{url}/api")
    set_mode(tmp_path, "")
    reproduce(tmp_path)  # what the flow has done, DVC finds done
    assert run_flows(tmp_path)[1].count("unchanged") == 5


def start_with_a_server(project: Path) -> tuple["subprocess.Popen[str]", psutil.Process]:
    """Starts the flow with another value in params.yaml; gives it, with a stage at work, and its Prefect server."""
    process = start_flows(project, "--set", "prepare.min_characters=4")
    eventually(lambda: (project / "pids").exists() or process.poll() is not None)
    assert process.poll() is None, process.communicate()[0]
    noted = json.loads((project / ".pipeline" / "prefect" / "server.json").read_text())
    return process, psutil.Process(noted["process"])


def test_the_end_of_its_own_server_stops_everything_and_is_one_clear_line(tmp_path: Path) -> None:
    params = (make_project(tmp_path, "checkpoints") / "params.yaml").read_bytes()
    process, server = start_with_a_server(tmp_path)
    family = psutil.Process(process.pid).children(recursive=True)
    server.kill()
    output, _ = process.communicate(timeout=90)  # Prefect alone tries for three minutes
    assert process.returncode == 1
    assert output.splitlines()[-1] == (
        "error: the Prefect server has ended meanwhile (see .pipeline/prefect/server.log): "
        "run again; what was done is not done again"
    )
    assert "Traceback" not in output
    assert (tmp_path / "checkpoint").read_text() == "saved"
    assert [member for member in family if still_works(member.pid)] == []
    assert (tmp_path / "params.yaml").read_bytes() == params


@pytest.mark.skipif(not psutil.LINUX, reason="a limit for another process")
def test_a_server_of_its_own_that_fails_is_one_clear_line(tmp_path: Path) -> None:
    params = (make_project(tmp_path, "waits") / "params.yaml").read_bytes()
    process, server = start_with_a_server(tmp_path)
    server.rlimit(psutil.RLIMIT_FSIZE, (0, 0))  # as with a full disk: its database takes nothing any more
    (tmp_path / "go").touch()
    output, _ = process.communicate(timeout=90)
    assert process.returncode == 1
    assert output.splitlines()[-1].startswith("error: the Prefect server fails (Server error '500")
    assert "Traceback" not in output
    assert not still_works(server.pid)
    assert (tmp_path / "params.yaml").read_bytes() == params
