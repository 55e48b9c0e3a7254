"""The journal on disk."""

from pathlib import Path
from typing import Any

import pytest

from stages import spool as spools
from stages.spool import SPOOLS, Spool


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
