"""Going back to a former champion in a real registry, and that the next registration respects it."""

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from registered import MODEL, TASK, params, write_model, write_results

from lightning_modules.errors import PipelineError
from stages.election import Verdict, elect, forerunners
from stages.register import register_all
from stages.registry import Registry
from stages.rollback import rollback
from stages.spool import file_lock
from stages.tracking_store import tracking_uri

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def root(study: Path) -> Path:
    """Three versions, each better than the one before; 4 is a challenger."""
    from mlflow import MlflowClient

    registry = Registry(MlflowClient(tracking_uri(study)), MODEL)
    client(study).create_registered_model(MODEL)
    for number, strength in enumerate((1, 5, 9, 2), start=1):
        client(study).create_model_version(MODEL, source=str(study), tags={"strength": str(strength)})
        elect(
            registry, str(number), lambda one, other: Verdict(strength_of(study, one) > strength_of(study, other), "")
        )
    return study


def strength_of(root: Path, number: str) -> int:
    return int(tags(root, number)["strength"])


def client(root: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri(root))


def aliases(root: Path) -> dict[str, str]:
    return {alias: str(number) for alias, number in client(root).get_registered_model(MODEL).aliases.items()}


def tags(root: Path, number: str) -> dict[str, str]:
    found: dict[str, str] = client(root).get_model_version(MODEL, number).tags
    return found


def test_the_next_registration_respects_it(study: Path) -> None:
    for seed, right in ((1, 0.1), (2, 1.0)):
        train(study, seed, right)
    assert aliases(study) == {"champion": "2"}
    rollback(params(), TASK, None, study)
    same = train(study, seed=2, right=1.0)
    assert (same["version"], same["alias"], same["state"]) == ("2", None, "rolled back")
    assert same["reason"] == "it was champion before version 1: only rollback --to 2 makes it so again"
    assert same["uri"] == f"models:/{MODEL}/2"
    assert aliases(study) == {"champion": "1"}
    new = train(study, seed=3, right=0.9)
    assert (new["version"], new["alias"], new["reason"][:21]) == ("3", "champion", "better than version 1")
    assert tags(study, "3")["replaced"] == "1"


def train(root: Path, seed: int, right: float) -> dict[str, Any]:
    write_model(root, seed)
    write_results(root, right)
    ours = params()
    quick = ours.promotion.model_copy(update={"check_export": False})
    return register_all(ours.model_copy(update={"promotion": quick}), root)[TASK]


def test_back_step_by_step_and_forward_again(root: Path) -> None:
    assert aliases(root) == {"champion": "3", "challenger": "4"}
    assert rollback(params(), TASK, None, root) == f"{MODEL}: champion is now version 2, no longer version 3"
    assert aliases(root)["champion"] == "2"
    assert tags(root, "3")["state"] == "rolled back"
    assert tags(root, "3")["alias_reason"].startswith("rolled back to version 2 on ")
    rollback(params(), TASK, None, root)
    assert aliases(root)["champion"] == "1"
    with pytest.raises(PipelineError, match=r"known from before version 1: name one with --to \(2, 3, 4\)"):
        rollback(params(), TASK, None, root)

    rollback(params(), TASK, "4", root)
    assert aliases(root) == {"champion": "4"}, "what is champion is no challenger"
    rollback(params(), TASK, None, root)
    assert aliases(root)["champion"] == "1"


def test_over_several_versions_none_of_them_comes_back_by_itself(root: Path) -> None:
    rollback(params(), TASK, "1", root)
    assert {number: tags(root, number)["state"] for number in "1234"} == {
        "1": "promoted", "2": "rolled back", "3": "rolled back", "4": "challenger",
    }  # fmt: skip
    rollback(params(), TASK, "3", root)
    assert (aliases(root)["champion"], tags(root, "3")["state"]) == ("3", "promoted")


def test_it_waits_for_a_registration_that_is_at_work(root: Path) -> None:
    """Which is on its way to make version 5 champion, and would do so again if it lost the alias half-way."""
    client(root).create_model_version(MODEL, source=str(root), tags={"strength": "20"})
    half_way, over, said = threading.Event(), threading.Event(), []

    class Slow(Registry):
        def set_alias(self, alias: str, number: str) -> None:
            super().set_alias(alias, number)
            half_way.set()
            over.wait(2)  # a rollback that does not wait for it is over by then

    def register() -> None:
        registry = Slow(client(root), MODEL)
        with file_lock(root / ".pipeline" / "registry.lock"):
            elect(registry, "5", lambda one, other: Verdict(strength_of(root, one) > strength_of(root, other), ""))

    def roll_back() -> None:
        said.append(rollback(params(), TASK, None, root))
        over.set()

    threads = [threading.Thread(target=work) for work in (register, roll_back)]
    threads[0].start()
    assert half_way.wait(60)
    threads[1].start()
    for thread in threads:
        thread.join()
    assert said == [f"{MODEL}: champion is now version 3, no longer version 5"]
    assert (aliases(root)["champion"], tags(root, "5")["state"]) == ("3", "rolled back")


def test_what_cannot_be_done_is_one_line(root: Path) -> None:
    for to, says in (
        ("9", "--to 9: there is no such version; there are 1, 2, 3, 4"),
        ("3", "--to 3: it is the champion already"),
        ("x", "--to x: there is no such version"),
    ):
        with pytest.raises(PipelineError, match=f"^{says}"):
            rollback(params(), TASK, to, root)
    client(root).set_model_version_tag(MODEL, "4", "state", "refused")
    with pytest.raises(PipelineError, match=r"^--to 4: it is refused"):
        rollback(params(), TASK, "4", root)
    client(root).delete_registered_model_alias(MODEL, "champion")
    with pytest.raises(PipelineError, match=f"^{MODEL} has no champion: register gives it one$"):
        rollback(params(), TASK, None, root)
    with pytest.raises(PipelineError, match=r"^no task 'poetry' in params.yaml, which has translation$"):
        rollback(params(), "poetry", None, root)


def test_the_command(root: Path) -> None:
    (root / "params.yaml").write_text(Path(__file__).with_name("params.yaml").read_text())
    command = [sys.executable, "-m", "stages.rollback", TASK]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{MODEL}: champion is now version 2, no longer version 3\n")
    assert aliases(root)["champion"] == "2"


def test_tags_edited_by_hand_lead_round_in_no_circle() -> None:
    ring = {"1": {"replaced": "3"}, "2": {"replaced": "1"}, "3": {"replaced": "2"}}
    assert forerunners(ring, "3") == ["2", "1"]
    assert forerunners({"2": {"replaced": "1"}}, "2") == []
