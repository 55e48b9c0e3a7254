"""A real training that is killed and gone on with, as a real SQLite store has it: each step once, and its whole log."""

import os
import signal
from pathlib import Path

from mlflow_tools import client, history, runs
from stage_runs import PRETRAIN, await_checkpoint, curve, finish, running, workspace

from stages.tracking_store import tracking_uri

STEPS = 200  # a row of the curve each other one


def test_a_killed_training_has_each_step_once_and_one_log(tmp_path: Path) -> None:
    root = workspace(tmp_path / "killed", pretrain={"steps": STEPS, "checkpoint_every": 40, "validate_every": 20})
    (root / "params.yaml").write_text(
        "\n".join(
            "  experiment: a study" if line.startswith("  experiment:") else line
            for line in (root / "params.yaml").read_text().splitlines()
        )
    )
    uri = tracking_uri(root.resolve())
    environment = {"MLFLOW_TRACKING_URI": uri}
    for step in (40, 120):  # twice, each time some steps after a checkpoint
        with running(root, PRETRAIN, **environment) as process:
            await_checkpoint(process, root, step)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        journals = list((root / ".pipeline/spool").glob("*-*/journal.jsonl"))
        assert len(journals) == 1, "the run is gone on with in its own spool"
    finish(root, PRETRAIN, **environment)
    made = runs(uri)["pretrain"]
    assert made.info.status == "FINISHED"
    rows = curve(root / "models/pretrained")
    assert int(rows[-1]["step"]) == STEPS
    for name in ("train_loss", "validation_loss", "learning_rate"):
        wanted = [(int(row["step"]), float(row[name])) for row in rows if row[name]]
        assert history(uri, made.info.run_id, name) == wanted, name
    for name in made.data.metrics:  # those of the machine's load, and those that differ from run to run
        steps = [step for step, _ in history(uri, made.info.run_id, name)]
        assert steps == sorted(set(steps)), name
    log = Path(client(uri).download_artifacts(made.info.run_id, "log.txt", str(tmp_path))).read_text()
    assert log.count("--- pretrain, ") == 3
    assert log.count("pretrain: going on from step") == 2
    assert "100%|" in log.splitlines()[-1]
    assert not list((root / ".pipeline/spool").iterdir())
