"""Runs that belong together, are killed, resumed, or meet: real processes and a real SQLite store."""

import json
from errno import ENOSPC
from pathlib import Path
from typing import Any

import pytest
from mlflow_tools import history, python, runs

from lightning_modules.errors import Interrupted
from stages.logged import Logged
from stages.spool import SPOOLS, Spool
from stages.tracking import flush, stage_run
from stages.tracking_store import tracking_uri


def test_stages_of_a_run_share_a_parent_that_follows_them(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_RUN", "prefect-abc")
    monkeypatch.setenv("PIPELINE_FLOW_URL", "http://me:secret@127.0.0.1:4200/runs/flow-run/abc")
    uri = tracking_uri(study)
    with stage_run("prepare"):
        assert runs(uri)["all"].info.status == "RUNNING"
    assert runs(uri)["all"].info.status == "FINISHED"
    with pytest.raises(ValueError, match="bad"), stage_run("finetune@translation"):
        raise ValueError("bad")
    made = runs(uri)
    parent = made.pop("all")
    assert parent.info.status == "FAILED"
    assert {run.data.tags["mlflow.parentRunId"] for run in made.values()} == {parent.info.run_id}
    tags = made["prepare"].data.tags
    assert tags["prefect.flow_run_id"] == "abc"
    assert tags["prefect.url"] == "http://127.0.0.1:4200/runs/flow-run/abc"
    note = json.loads((study / ".pipeline/runs/prefect-abc/finetune@translation.json").read_text())
    failed = made["finetune@translation"].info
    assert note == {
        "stage": "finetune@translation",
        "run_id": failed.run_id,
        "experiment_id": failed.experiment_id,
        "url": f"http://127.0.0.1:5000/#/experiments/{failed.experiment_id}/runs/{failed.run_id}",
    }


def test_a_stages_page_leads_to_the_pipelines_and_that_to_the_flow_and_the_report(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIPELINE_RUN", "prefect-abc")
    monkeypatch.setenv("PIPELINE_FLOW_URL", "http://127.0.0.1:4200/runs/flow-run/abc")
    (study / "report.html").write_text("<p>all is well</p>")
    with stage_run("prepare"):
        pass
    with stage_run("report") as report:
        report.log_artifact(study / "report.html")
        report.show_with_pipeline("report.html")
    made = runs(tracking_uri(study))
    parent, experiment = made["all"], made["all"].info.experiment_id
    note = parent.data.tags["mlflow.note.content"]
    assert "(http://127.0.0.1:4200/runs/flow-run/abc)" in note
    assert f"[report.html](#/experiments/{experiment}/runs/{report.run_id}/artifacts/report.html)" in note
    for stage in ("prepare", "report"):
        note = made[stage].data.tags["mlflow.note.content"]
        assert f"(#/experiments/{experiment}/runs/{parent.info.run_id})" in note
        assert "(http://127.0.0.1:4200/runs/flow-run/abc)" in note


def test_a_resumed_stage_goes_on_in_its_run(study: Path) -> None:
    checkpoints = study / ".pipeline" / "checkpoints" / "pretrain"
    first: list[str | None] = []

    def stopped() -> None:
        with stage_run("pretrain", params={"steps": 4}, resume_from=checkpoints) as run:
            first.append(run.run_id)
            run.log_metrics({"loss": 3.0}, step=1)
            raise Interrupted

    with pytest.raises(Interrupted):
        stopped()
    with stage_run("pretrain", params={"steps": 4}, resume_from=checkpoints) as second:
        assert second.run_id == first[0]
        second.log_metrics({"loss": 2.0}, step=2)
    uri = tracking_uri(study)
    assert runs(uri)["pretrain"].info.status == "FINISHED"
    assert history(uri, str(first[0]), "loss") == [(1, 3.0), (2, 2.0)]
    assert not list(checkpoints.iterdir()), "a finished run must not be gone on with"


def test_a_killed_stage_loses_nothing_and_is_resumed_or_marked(study: Path) -> None:
    script = """
        import os, signal, sys
        from pathlib import Path
        from stages.tracking import stage_run
        with stage_run(sys.argv[1], resume_from=Path(".pipeline/checkpoints") / sys.argv[1]) as run:
            run.log_metrics({"loss": 3.0}, step=1)
            os.kill(os.getpid(), signal.SIGKILL)
    """
    for stage in ("pretrain", "finetune"):
        python(study, script, stage)
    with stage_run("pretrain", resume_from=study / ".pipeline/checkpoints/pretrain") as run:
        run.log_metrics({"loss": 2.0}, step=2)
    assert flush() == 0
    uri = tracking_uri(study)
    made = runs(uri)
    assert history(uri, made["pretrain"].info.run_id, "loss") == [(1, 3.0), (2, 2.0)]
    assert history(uri, made["finetune"].info.run_id, "loss") == [(1, 3.0)]
    assert {stage: run.info.status for stage, run in made.items()} == {"pretrain": "FINISHED", "finetune": "KILLED"}


def interrupted(checkpoints: Path, *logged: tuple[str, int, float]) -> None:
    """A training that logs (name, step, value) and is stopped."""

    def training() -> None:
        with stage_run("pretrain", resume_from=checkpoints) as run:
            for name, step, value in logged:
                run.log_metrics({name: value}, step=step)
            raise Interrupted

    with pytest.raises(Interrupted):
        training()


def test_steps_made_anew_after_a_roll_back_are_logged_though_it_was_killed_right_after(study: Path) -> None:
    checkpoints, uri = study / "checkpoints", tracking_uri(study)
    before = [("loss", step, float(step)) for step in (1, 2, 3)]
    interrupted(checkpoints, *before, ("roll_backs", 4, 1.0))  # to step 1
    interrupted(checkpoints, ("loss", 2, 20.0), ("roll_backs", 3, 2.0))  # and again
    with stage_run("pretrain", resume_from=checkpoints) as run:
        for step, value in ((2, 200.0), (3, 300.0), (4, 400.0)):
            run.log_metrics({"loss": value}, step=step)
    known = [(1, 1.0), (2, 2.0), (3, 3.0), (2, 20.0), (2, 200.0), (3, 300.0), (4, 400.0)]
    assert sorted(history(uri, str(run.run_id), "loss")) == sorted(known)
    assert sorted(history(uri, str(run.run_id), "roll_backs")) == [(3, 2.0), (4, 1.0)]


def test_a_roll_back_among_steps_made_again_begins_anew() -> None:
    def metrics(name: str, step: int) -> dict[str, Any]:
        return {"op": "metrics", "values": {name: 1.0}, "step": step}

    logged = Logged([{"op": "begin"}, *(metrics("loss", step) for step in range(5)), metrics("system/load", 7)])
    assert logged.new({"loss": 1.0}, 3) == {}
    assert logged.new({"loss": 1.0, "rate": 1.0}, 4) == {"rate": 1.0}
    assert logged.new({"roll_backs": 1.0}, 4) == {"roll_backs": 1.0}
    assert logged.new({"loss": 2.0}, 3) == {"loss": 2.0}
    assert logged.samples() == 8, "the machine's load knows no steps to go back to"


def test_steps_are_logged_once_though_another_stage_holds_the_spool(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.session.TAKE_WAIT", 0.1)
    checkpoints = study / "checkpoints"
    interrupted(checkpoints, ("loss", 1, 1.0), ("loss", 2, 2.0))
    holder = Spool.take(study / SPOOLS / (checkpoints / "mlflow_spool").read_text())
    assert holder is not None
    with stage_run("pretrain", resume_from=checkpoints) as run:
        for step in (2, 3):
            run.log_metrics({"loss": float(step)}, step=step)
    holder.release()
    assert flush() == 0
    assert history(tracking_uri(study), str(run.run_id), "loss") == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_an_empty_note_of_its_spool_costs_no_other_run_its_journal(study: Path) -> None:
    other = Spool.create(study)  # which this process holds
    other.append({"op": "end"})
    checkpoints = study / "checkpoints"
    checkpoints.mkdir()
    (checkpoints / "mlflow_spool").touch()
    with stage_run("pretrain", resume_from=checkpoints):
        pass
    assert runs(tracking_uri(study))["pretrain"].info.status == "FINISHED"
    assert other.unsent()


def test_a_full_disk_leaves_the_note_of_its_spool_as_it_was(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = study / "checkpoints"
    interrupted(checkpoints, ("loss", 1, 1.0))
    before = (checkpoints / "mlflow_spool").read_text()

    def full(path: Path, text: str) -> None:
        path.open("w").close()
        raise OSError(ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        interrupted(checkpoints)
    assert [path.name for path in checkpoints.glob("*spool*")] == ["mlflow_spool"]
    assert (checkpoints / "mlflow_spool").read_text() == before


def test_a_training_whose_spool_is_damaged_begins_a_new_one_in_its_run(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = study / "checkpoints"
    interrupted(checkpoints, ("loss", 1, 1.0))
    (spool,) = (study / SPOOLS).iterdir()
    (spool / "state.json").write_text("")
    with stage_run("pretrain", resume_from=checkpoints) as run:
        run.log_metrics({"loss": 2.0}, step=2)
    made = runs(tracking_uri(study))["pretrain"]
    assert (made.info.run_id, made.info.status) == (run.run_id, "FINISHED")
    assert history(tracking_uri(study), str(run.run_id), "loss") == [(1, 1.0), (2, 2.0)]
    (warning,) = capsys.readouterr().err.splitlines()
    assert "damaged (state.json: " in warning
