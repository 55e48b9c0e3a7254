"""The journal on disk."""

from pathlib import Path

from stages.spool import Spool


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
