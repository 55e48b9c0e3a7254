"""What `sources` and `data` in params.yaml may hold: where texts come from, and which reader makes what of them.

A new reader is a class here, in `Entry`, and a function in `stages.prepare`. Import costs about 0.1 s.
"""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from stages.tasks import TASKS

PRETRAINING = "pretraining"  # the purpose that is not a task
PRETRAINING_FIELDS = ("text",)

Text = Annotated[str, Field(min_length=1)]
SourceName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]  # it names a folder and a DVC stage
Language = Annotated[str, Field(pattern=r"^[A-Za-z]{2,3}([-_][A-Za-z0-9]+)*$")]


class Section(BaseModel):
    """A part of params.yaml: every key needed, no other allowed, nothing converted behind the user's back."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class WheelSource(Section):
    """A Python package's archive, read as a zip file, pinned by version and checksum."""

    kind: Literal["wheel"]
    package: Text
    version: Text
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class HubSource(Section):
    """A data set of the Hugging Face hub, pinned by revision (a commit or tag)."""

    kind: Literal["hub"]
    path: Text
    name: str | None = None
    split: Text
    revision: Text


class LocalSource(Section):
    """A file, or a folder of files, of the user."""

    path: Annotated[Path, Field(strict=False)]


class Sources(Section):
    """Where bytes come from."""

    remote: dict[SourceName, Annotated[WheelSource | HubSource, Field(discriminator="kind")]]
    local: dict[SourceName, LocalSource]


class DataEntry(Section):
    """What a source is used for; `gives` are the fields that its reader fills."""

    source: str


class BotocoreDocuments(DataEntry):
    """A document for each operation or structure of a service."""

    gives: ClassVar[tuple[str, ...]] = PRETRAINING_FIELDS
    reader: Literal["botocore_documents"]


class BotocoreOperations(DataEntry):
    """The documentation of an operation and its title."""

    gives: ClassVar[tuple[str, ...]] = TASKS["summarization"].fields
    reader: Literal["botocore_operations"]


class BotocoreQuestions(DataEntry):
    """Several described fields and a question about one of them."""

    gives: ClassVar[tuple[str, ...]] = TASKS["question_answering"].fields
    reader: Literal["botocore_questions"]


class HomeAssistantStrings(DataEntry):
    """A document for each integration and language."""

    gives: ClassVar[tuple[str, ...]] = PRETRAINING_FIELDS
    reader: Literal["homeassistant_strings"]
    languages: Annotated[list[Language], Field(min_length=1)]


class HomeAssistantPairs(DataEntry):
    """The same user-interface text in two languages. `from` is a word of Python's own, hence `from_`."""

    gives: ClassVar[tuple[str, ...]] = TASKS["translation"].fields
    reader: Literal["homeassistant_pairs"]
    from_: Annotated[Language, Field(alias="from")]
    to: Language


class TextFiles(DataEntry):
    """Plain text: a document a line, a paragraph (blank lines between) or a file."""

    gives: ClassVar[tuple[str, ...]] = PRETRAINING_FIELDS
    reader: Literal["text"]
    split: Literal["line", "paragraph", "file"]


class Table(DataEntry):
    """jsonl, csv, tsv or parquet: `columns` gives for each of our fields the name of the file's column."""

    gives: ClassVar[tuple[str, ...] | None] = None  # whatever the purpose needs
    reader: Literal["table"]
    columns: dict[str, Text]
    group: Text | None = None


Entry = Annotated[
    BotocoreDocuments
    | BotocoreOperations
    | BotocoreQuestions
    | HomeAssistantStrings
    | HomeAssistantPairs
    | TextFiles
    | Table,
    Field(discriminator="reader"),
]
