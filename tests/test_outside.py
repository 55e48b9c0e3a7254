"""What `make status` says of work that is no run of the pipeline: what the watch measures, and sweeps."""

import time
from pathlib import Path

import pytest

from flows.events import Listener
from flows.status import StatusWriter, status_text
from flows.workspace import workspace
from stages.spool import Spool


@pytest.mark.parametrize("name", ["drift", "sweep"])
def test_the_watch_and_a_sweep_are_at_work_and_are_flows(tmp_path: Path, name: str) -> None:
    with workspace(tmp_path):
        StatusWriter(tmp_path, Listener(), "").close()
        assert "nothing is running" not in status_text(tmp_path, time.time()), "something holds the workspace"
    spool = Spool.create(tmp_path)
    spool.save_state(stage=name, pipeline_run=None)
    first, second = status_text(tmp_path, time.time()).splitlines()
    assert first.startswith("the last run began ")
    assert second.startswith(f"{name} is running, for ")
    spool.release()
    assert status_text(tmp_path, time.time()).startswith("nothing is running; the last run began ")
