"""A stage's run in MLflow, in a real SQLite store: what it holds, how it ends, what may go wrong."""

import re
from pathlib import Path

import pytest
from mlflow_tools import history, runs
from processes import eventually

from lightning_modules.errors import Interrupted
from stages.spool import SPOOLS
from stages.tracking import flat, flush, stage_run
from stages.tracking_store import tracking_uri


def test_a_run_holds_params_metrics_files_and_ends(study: Path) -> None:
    (study / "words.txt").write_text("some\n")
    with stage_run("prepare", params={"prepare": {"share": 0.5, "languages": ["en"]}}, system_metrics=True) as run:
        run.log_metrics({"loss": 2.0}, step=1)
        run.log_metrics({"loss": 1.0, "nothing": float("nan")}, step=2)
        run.log_text("a sample", "samples.txt")
        run.log_artifact(study / "words.txt")
        (study / "words.txt").write_text("changed afterwards\n")
        assert run.run_id
        [journal] = (study / SPOOLS).glob("*/journal.jsonl")
        eventually(lambda: '"system/' in journal.read_text())
    uri = tracking_uri(study)
    made = runs(uri)["prepare"]
    assert (made.info.run_id, made.info.status) == (run.run_id, "FINISHED")
    assert made.data.params == {"prepare.share": "0.5", "prepare.languages": '["en"]'}
    assert history(uri, made.info.run_id, "loss") == [(1, 2.0), (2, 1.0)]
    assert made.data.metrics["system/system_memory_usage_megabytes"] > 0
    artifacts = Path(made.info.artifact_uri.removeprefix("file://"))
    assert (artifacts / "samples.txt").read_text() == "a sample"
    assert (artifacts / "words.txt").read_text() == "some\n"
    assert not list((study / SPOOLS).iterdir())


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError, "FAILED"), (Interrupted, "KILLED"), (KeyboardInterrupt, "KILLED")]
)
def test_an_error_passes_through_and_is_the_runs_status(study: Path, error: type[BaseException], status: str) -> None:
    with pytest.raises(error), stage_run("tokenize"):
        raise error("reason")
    assert runs(tracking_uri(study))["tokenize"].info.status == status


def test_only_the_first_process_of_a_parallel_training_logs(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    with stage_run("pretrain", params={"a": 1}) as run:
        run.log_metrics({"loss": 1.0})
        run.log_text("text", "name.txt")
        assert run.run_id is None
    assert not (study / SPOOLS).exists()


def test_an_address_that_is_none_costs_a_line_and_neither_the_work_nor_what_was_logged(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://x")
    with stage_run("prepare") as run:
        run.log_metrics({"loss": 1.0})
    assert run.run_id is None
    assert re.match(r"warning: MLflow at nonsense://x cannot take it \(Model .*\n$", capsys.readouterr().err)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert flush() == 0
    assert runs(tracking_uri(study))["prepare"].data.metrics == {"loss": 1.0}


def test_nested_params_are_flattened() -> None:
    assert flat({"a": {"b": 1, "c": {"d": None}}, "e": [1, 2]}) == {"a.b": "1", "a.c.d": "None", "e": "[1, 2]"}
