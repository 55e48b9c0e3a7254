"""Readers of the embedded wheels, on small ones of the same layout; the shipped pins are of what is read."""

import gzip
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from preparing import letters, records, run

from lightning_modules.errors import PipelineError
from stages.embedded import botocore_methods, botocore_questions, chitchat_dialogues, chitchat_documents


def operation(method: str, documentation: str) -> dict[str, Any]:
    return {"http": {"method": method, "requestUri": "/"}, "documentation": documentation}


@pytest.fixture
def botocore(tmp_path: Path) -> Path:
    """Two services, one of them not of the REST kind, the other in two versions."""
    wheel = tmp_path / "raw/botocore/botocore-0-py3-none-any.whl"
    wheel.parent.mkdir(parents=True)
    new = {
        "MakeBox": operation("PUT", "<p>Calls <code>MakeBox</code>; MakeBoxes is another.</p>"),
        "GetBox": operation("GET", "<p>Returns a box.</p>"),
        "HeadBox": operation("HEAD", "<p>Is it there?</p>"),
        "Silent": operation("GET", ""),
    }
    versions: dict[str, tuple[str, dict[str, Any]]] = {
        "boxes/2019-01-01": ("rest-json", {"Old": operation("GET", "<p>Old.</p>")}),
        "boxes/2020-01-01": ("rest-json", new),
        "calls/2020-01-01": ("json", {"Call": operation("POST", "<p>Everything is posted.</p>")}),
    }
    with zipfile.ZipFile(wheel, "w") as archive:
        for place, (protocol, operations) in versions.items():
            api = {"metadata": {"protocol": protocol}, "operations": operations, "shapes": {}}
            archive.writestr(f"botocore/data/{place}/service-2.json.gz", gzip.compress(json.dumps(api).encode()))
    return wheel


def test_an_operation_and_its_method_without_its_name(botocore: Path) -> None:
    assert list(botocore_methods(botocore)) == [
        {"text": "Calls it; MakeBoxes is another.", "label": "PUT", "group": "boxes"},
        {"text": "Returns a box.", "label": "GET", "group": "boxes"},
    ]


@pytest.mark.parametrize("in_context", [2, 4, 9, 10])
def test_a_question_is_about_one_of_so_many_fields(tmp_path: Path, in_context: int) -> None:
    members = {f"Side{letter}": {"documentation": f"<p>The length of side {letter}.</p>"} for letter in "ABCDEFGHI"}
    api = {"metadata": {"protocol": "json"}, "operations": {}, "shapes": {"Box": {"members": members}}}
    wheel = tmp_path / "botocore-0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("botocore/data/boxes/2020-01-01/service-2.json.gz", gzip.compress(json.dumps(api).encode()))
    found = list(botocore_questions(wheel, in_context))
    assert len(found) == len(members) // in_context
    for question in found:
        assert question["context"].count("The length of side ") == in_context
        letter = question["question"].removeprefix("What is Side ").removesuffix("?")
        assert question["answer"] == f"The length of side {letter}"
        assert question["answer"] in question["context"]


def conversation(*turns: list[str]) -> dict[str, Any]:
    return {"messages": [[{"text": text, "sender": "x"} for text in turn] for turn in turns]}


def write_chitchat(root: Path, conversations: dict[str, Any]) -> Path:
    wheel = root / "raw/chitchat/chitchat_dataset-0-py3-none-any.whl"
    wheel.parent.mkdir(parents=True)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("chitchat_dataset/dataset.json", json.dumps(conversations))
    return wheel


def test_what_one_says_in_several_messages_is_a_turn(tmp_path: Path) -> None:
    talk = conversation(["Hello", "there!"], ["Hi\nyou"], [" "], ["How are you?"])
    wheel = write_chitchat(tmp_path, {"a": talk, "b": conversation()})
    assert list(chitchat_documents(wheel)) == [{"text": "Hello there!\nHi you\nHow are you?", "group": "a"}]
    assert list(chitchat_dialogues(wheel, history=1)) == [
        {"history": "Hello there!", "reply": "Hi\nyou", "group": "a"},
        {"history": "Hi you", "reply": "How are you?", "group": "a"},
    ]


def test_a_conversation_is_in_the_same_split_for_both_purposes(tmp_path: Path) -> None:
    write_chitchat(
        tmp_path,
        {letters(n): conversation([f"Hello {letters(n)}"], [f"Hi {letters(n)}"], ["So?"]) for n in range(60)},
    )
    run(
        tmp_path,
        {
            "pretraining": [{"source": "chitchat", "reader": "chitchat_documents"}],
            "dialogue": [{"source": "chitchat", "reader": "chitchat_dialogues", "history": 2}],
        },
    )
    found = [*records(tmp_path, "pretraining"), *records(tmp_path, "dialogue")]
    assert len(found) == 60 * 3
    assert len({(record["group"], record["split"]) for record in found}) == 60


def test_another_layout_is_one_error(tmp_path: Path) -> None:
    write_chitchat(tmp_path, {"a": {"turns": []}})
    with pytest.raises(PipelineError, match=r"\.whl is not what reader chitchat_documents expects \(KeyError"):
        run(tmp_path, {"pretraining": [{"source": "chitchat", "reader": "chitchat_documents"}]})
