"""`python -m flows.serve` whose Prefect server dies. (That its schedules fire is in test_pipeline.py.)"""

import json
import os
import signal
from pathlib import Path

import psutil
from processes import eventually, still_works
from toy_project import ROOT, make_project, start_flows

SCHEDULED = f"""
deployments:
  - name: scheduled
    entrypoint: {ROOT}/flows/pipeline.py:pipeline
    parameters: {{targets: [finetune@translation]}}
    schedules: [{{interval: 10}}]
    concurrency_limit: {{limit: 1, collision_strategy: CANCEL_NEW}}
"""


def test_it_ends_soon_with_its_server_and_its_run_saves(tmp_path: Path) -> None:
    (make_project(tmp_path, "checkpoints") / "prefect.yaml").write_text(SCHEDULED)
    process = start_flows(tmp_path, module="flows.serve")
    eventually(lambda: (tmp_path / "pids").exists() or process.poll() is not None)
    assert process.poll() is None, process.communicate()[0]
    family = psutil.Process(process.pid).children(recursive=True)
    noted = json.loads((tmp_path / ".pipeline" / "prefect" / "server.json").read_text())
    os.kill(noted["process"], signal.SIGKILL)
    output, _ = process.communicate(timeout=90)
    assert process.returncode == 1
    why = "error: the Prefect server has ended meanwhile (see .pipeline/prefect/server.log)"
    assert f"{why}: start `make serve-flows` again" in output.splitlines()
    assert (tmp_path / "checkpoint").read_text() == "saved"
    assert [member for member in family if still_works(member.pid)] == []
