"""Readers of the embedded data: three wheels, read as zip files and never installed.

botocore describes 439 web services in English (operations, structures and their fields, as HTML); homeassistant holds
the texts of its user interface in 60 languages; chitchat-dataset holds 7,168 conversations in English. Each function
yields records with the fields of its purpose and the `group` by which they are split: the service, the integration, the
conversation. HTML is stripped here, field by field, because an answer must stand in its context letter by letter; what
comes out must not be stripped a second time.
"""

import gzip
import json
import random
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages.dialogues import dialogue_rows, one_line
from stages.text import strip_html

Record = dict[str, str]
_DESCRIPTION = (15, 110)  # shortest and longest description of a field in a context, in characters


def botocore_services(wheel: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(service, its API description) for each service, the newest version alone, in alphabetical order."""
    with zipfile.ZipFile(wheel) as archive:
        newest: dict[str, str] = {}
        for member in sorted(archive.namelist()):
            if member.endswith("/service-2.json.gz"):
                newest[member.split("/")[2]] = member  # botocore/data/SERVICE/DATE/…: dates sort as text
        for service, member in newest.items():
            yield service, json.loads(gzip.decompress(archive.read(member)))


def botocore_documents(wheel: Path) -> Iterator[Record]:
    """A document for each operation (its name and documentation) and each structure (its fields, a line each)."""
    for service, api in botocore_services(wheel):
        for name, operation in api["operations"].items():
            text = strip_html(operation.get("documentation", ""))
            yield {"text": f"{words(name)}\n{text}", "group": service}
        for name, shape in api["shapes"].items():
            lines = [f"{words(field)}: {text}" for field, text in _described_fields(shape)]
            about = strip_html(shape.get("documentation", ""))
            if about or lines:
                yield {"text": "\n".join([words(name), *([about] if about else []), *lines]), "group": service}


def botocore_operations(wheel: Path) -> Iterator[Record]:
    """Documentation of an operation → its name in words; where the text names the operation, `it` stands instead."""
    for service, api in botocore_services(wheel):
        for name, operation in api["operations"].items():
            if text := _without_name(operation, name):
                yield {"document": text, "summary": words(name), "group": service}


def _without_name(operation: dict[str, Any], name: str) -> str:
    text = strip_html(operation.get("documentation", ""))
    return re.sub(rf"\b{re.escape(name)}\b", "it", text)


def botocore_methods(wheel: Path) -> Iterator[Record]:
    """Documentation of an operation → the HTTP method that calls it, for services of the REST kind.

    Told from what the operation does: one text in two hundred names its method. HEAD calls three operations only.
    """
    for service, api in botocore_services(wheel):
        if not api["metadata"]["protocol"].startswith("rest"):
            continue  # the others call everything with POST
        for name, operation in api["operations"].items():
            text, method = _without_name(operation, name), operation["http"]["method"]
            if text and method != "HEAD":
                yield {"text": text, "label": method, "group": service}


def botocore_questions(wheel: Path, in_context: int) -> Iterator[Record]:
    """A context that describes so many fields of one structure, a question about one of them, the answer from the text.

    Fields are shuffled by a generator seeded with the structure's name, so each run makes the same questions.
    """
    for service, api in botocore_services(wheel):
        for name, shape in api["shapes"].items():
            fields = [(words(field), _first_sentence(text)) for field, text in _described_fields(shape)]
            fields = [(field, text) for field, text in fields if _DESCRIPTION[0] <= len(text) <= _DESCRIPTION[1]]
            chosen = random.Random(f"{service} {name}")  # noqa: S311 - a shuffle, no secret
            chosen.shuffle(fields)
            for start in range(0, len(fields) - in_context + 1, in_context):
                context = fields[start : start + in_context]
                field, answer = chosen.choice(context)
                text = " ".join(f"{one}: {description}." for one, description in context)
                yield {"question": f"What is {field}?", "context": text, "answer": answer, "group": service}


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=[.!?])\s", text, maxsplit=1)[0].rstrip(".")


def words(name: str) -> str:
    """`CreateDBCluster` → `Create DB Cluster`, `maxResults` → `Max Results`."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|_", " ", name).strip()
    return spaced[:1].upper() + spaced[1:]


def _described_fields(shape: dict[str, Any]) -> list[tuple[str, str]]:
    members = shape.get("members", {})
    fields = [(name, strip_html(member.get("documentation", ""))) for name, member in members.items()]
    return [(name, text) for name, text in fields if text]


def homeassistant_strings(wheel: Path, languages: list[str]) -> Iterator[Record]:
    """A document for each integration and language: all its texts, a line each."""
    for integration, texts in _integrations(wheel, languages):
        for language in languages:
            if lines := list(texts.get(language, {}).values()):
                yield {"text": "\n".join(lines), "group": integration}


def homeassistant_pairs(wheel: Path, source_language: str, target_language: str) -> Iterator[Record]:
    """Pairs of texts that stand at the same place of the user interface in both languages."""
    for integration, texts in _integrations(wheel, [source_language, target_language]):
        source, target = texts.get(source_language, {}), texts.get(target_language, {})
        for place in source:
            if place in target and source[place] != target[place]:
                yield {"source": source[place], "target": target[place], "group": integration}


def _integrations(wheel: Path, languages: list[str]) -> Iterator[tuple[str, dict[str, dict[str, str]]]]:
    """(integration, {language: {place: text}}), in alphabetical order."""
    with zipfile.ZipFile(wheel) as archive:
        members = set(archive.namelist())
        pattern = re.compile(r"homeassistant/components/([^/]+)/translations/[^/]+\.json")
        for integration in sorted({match[1] for member in members if (match := pattern.fullmatch(member))}):
            folder = f"homeassistant/components/{integration}/translations"
            present = [language for language in languages if f"{folder}/{language}.json" in members]
            yield (
                integration,
                {
                    language: dict(_leaves(json.loads(archive.read(f"{folder}/{language}.json"))))
                    for language in present
                },
            )


def _leaves(tree: dict[str, Any], place: str = "") -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{place}/{key}")
        elif isinstance(value, str) and value.strip():
            yield f"{place}/{key}", value.strip()


def chitchat_documents(wheel: Path) -> Iterator[Record]:
    """A document for each conversation, a turn a line."""
    for conversation, turns in _conversations(wheel):
        if turns:
            yield {"text": "\n".join(map(one_line, turns)), "group": conversation}


def chitchat_dialogues(wheel: Path, history: int) -> Iterator[Record]:
    """A record for each turn but the first: the last `history` turns before it, and the turn."""
    for conversation, turns in _conversations(wheel):
        for record in dialogue_rows(turns, history):
            yield record | {"group": conversation}


def _conversations(wheel: Path) -> Iterator[tuple[str, list[str]]]:
    """(name, turns): what one speaker wrote before the other did is a turn."""
    with zipfile.ZipFile(wheel) as archive:
        conversations = json.loads(archive.read("chitchat_dataset/dataset.json"))
    for name, conversation in conversations.items():
        turns = (" ".join(message["text"] for message in turn) for turn in conversation["messages"])
        yield name, [turn for turn in turns if turn.strip()]
