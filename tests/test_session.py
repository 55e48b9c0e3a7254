"""Runs that belong together, are killed, resumed, or meet: real processes and a real SQLite store."""

import json
from pathlib import Path

import pytest
from mlflow_tools import history, python, runs

from lightning_modules.errors import Interrupted
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
