"""The journal on disk, and what becomes of one that the disk has spoilt."""

from pathlib import Path
from typing import Any

import pytest
from mlflow_tools import runs

from stages import spool as spools
from stages.spool import SPOOLS, Spool
from stages.tracking import flush, stage_run
from stages.tracking_store import tracking_uri


def test_half_a_line_of_a_dead_process_is_dropped(study: Path) -> None:
    spool = Spool.create(study)
    spool.append({"op": "end"})
    assert Spool.take(spool.folder) is None, "a living process holds it"
    spool.release()
    with (spool.folder / "journal.jsonl").open("a") as journal:
        journal.write('{"op": "met')
    again = Spool.take(spool.folder)
    assert again is not None
    again.append({"op": "params"})
    assert [operation["op"] for operation, _ in again.unsent()] == ["end", "params"]


def test_one_that_is_being_deleted_is_taken_over_by_nobody(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever of it is there still: others look through all spools at any moment."""
    taken: list[Spool] = []
    spool = Spool.create(study)
    spool.append({"op": "end"})
    spool.save_state(sent=1)

    def slowly(folder: Path, **options: Any) -> None:
        for path in sorted(folder.iterdir(), reverse=True):
            path.unlink()
            taken.extend(Spool.abandoned(study))
        folder.rmdir()

    monkeypatch.setattr(spools.shutil, "rmtree", slowly)
    spool.remove()
    assert not taken
    assert not list((study / SPOOLS).iterdir())


@pytest.mark.parametrize("name", ["", ".", "..", "../.."])
def test_a_folder_that_is_no_spool_is_taken_over_by_nobody(name: str, study: Path) -> None:
    """An empty note of where a run's spool is would name the folder of all."""
    Spool.create(study).release()
    before = sorted(study.rglob("*"))
    assert Spool.take(study / SPOOLS / name) is None
    assert sorted(study.rglob("*")) == before


def test_what_comes_after_a_journal_lost_its_end_is_sent(study: Path) -> None:
    """A machine that dies may keep the note of how much was sent, and not all of that."""
    spool = Spool.create(study)
    for step in range(3):
        spool.append({"op": "metrics", "values": {"loss": 1.0}, "step": step})
    spool.save_state(sent=spool.unsent()[-1][1])
    spool.release()
    journal = spool.folder / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-10])
    again = Spool.take(spool.folder)
    assert again is not None
    again.append({"op": "end"})
    assert [operation["op"] for operation, _ in again.unsent()] == ["end"]


def wait_for_ever(study: Path, monkeypatch: pytest.MonkeyPatch, *stages: str) -> list[Path]:
    """The spools of stages that found no server."""
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        for stage in stages:
            with stage_run(stage) as run:
                run.log_metrics({"loss": 1.0})
    return sorted((study / SPOOLS).iterdir())


@pytest.mark.parametrize("file", ["state.json", "journal.jsonl"])
@pytest.mark.parametrize("damage", [b"", b"\0" * 64 + b"\n", b"[]\n"], ids=["empty", "zeros", "list"])
def test_a_damaged_spool_is_set_aside_and_named_and_the_rest_is_sent(
    file: str, damage: bytes, study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged, _ = wait_for_ever(study, monkeypatch, "prepare", "tokenize")
    first, rest = (damaged / file).read_bytes().split(b"}", 1)
    (damaged / file).write_bytes(damage if file == "state.json" else first + b"}\n" + (damage or b"\n") + rest)
    capsys.readouterr()
    assert Spool.waiting(study) == 2
    with stage_run("report"):
        pass
    (aside,) = (study / SPOOLS).iterdir()
    assert aside.name == f"{damaged.name.replace('-', '.')}.damaged"
    (warning,) = capsys.readouterr().err.splitlines()
    assert f"({file}: " in warning
    assert warning.endswith(f"it is kept in {aside}")
    assert {stage: run.info.status for stage, run in runs(tracking_uri(study)).items()} == dict.fromkeys(
        ("tokenize", "report"), "FINISHED"
    )
    assert flush() == 0
    assert aside.exists()


def test_a_spool_that_cannot_be_read_now_holds_up_no_other(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoilt, _ = wait_for_ever(study, monkeypatch, "prepare", "tokenize")
    checkpoints = study / "checkpoints"
    (checkpoints / "mlflow_spool").mkdir(parents=True)  # read as a file it is an OSError
    spool = Spool.take(spoilt)
    assert spool is not None
    spool.save_state(resume_from=str(checkpoints))
    spool.release()
    flush()
    assert list((study / SPOOLS).iterdir()) == [spoilt]
    assert f"warning: what waits in {spoilt} cannot be sent to MLflow now" in capsys.readouterr().err
    assert runs(tracking_uri(study))["tokenize"].info.status == "FINISHED"
    (checkpoints / "mlflow_spool").rmdir()
    assert flush() == 0
    assert not list((study / SPOOLS).iterdir())
