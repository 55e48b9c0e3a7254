"""What `sources` and `data` in params.yaml may hold: where texts come from, and which reader makes what of them.

A new reader is a class here, in `Entry`, and a function in `stages.readers`. Import costs about 0.1 s.
"""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from stages.tasks import LANGUAGE, PRETRAINING_FIELDS, TASKS, language_tag

Text = Annotated[str, Field(min_length=1)]
# It names a folder and a DVC stage, and is a word of a command, to which "-x" would be an option.
SourceName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]*$")]
Language = Annotated[str, Field(pattern=rf"^{LANGUAGE}$")]
Turns = Annotated[int, Field(ge=1)]


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

    @property
    def tag(self) -> str:
        """What each source text begins with."""
        return ""


class TaggedEntry(DataEntry):
    """Texts for one model that translates into several languages: `to` is the one that these are translated into."""

    to: Language | None = None

    @property
    def tag(self) -> str:
        """The target language."""
        return language_tag(self.to) if self.to else ""


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
    fields: Annotated[int, Field(ge=2)] = 4  # described in a context


class BotocoreMethods(DataEntry):
    """The documentation of an operation and the HTTP method that calls it."""

    gives: ClassVar[tuple[str, ...]] = TASKS["classification"].fields
    reader: Literal["botocore_methods"]


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
    tagged: bool = False

    @property
    def tag(self) -> str:
        """The target language, where asked for."""
        return language_tag(self.to) if self.tagged else ""


class ChitchatDialogues(DataEntry):
    """A turn of a conversation, and before it the last `history` turns."""

    gives: ClassVar[tuple[str, ...]] = TASKS["dialogue"].fields
    reader: Literal["chitchat_dialogues"]
    history: Turns


class ChitchatDocuments(DataEntry):
    """A document for each conversation."""

    gives: ClassVar[tuple[str, ...]] = PRETRAINING_FIELDS
    reader: Literal["chitchat_documents"]


class TextFiles(DataEntry):
    """Plain text: a document a line, a paragraph (blank lines between) or a file."""

    gives: ClassVar[tuple[str, ...]] = PRETRAINING_FIELDS
    reader: Literal["text"]
    split: Literal["line", "paragraph", "file"]


class Table(TaggedEntry):
    """jsonl, json, csv, tsv or parquet: `columns` gives for each of our fields the name of the file's column."""

    gives: ClassVar[tuple[str, ...] | None] = None  # whatever the purpose needs
    reader: Literal["table"]
    columns: dict[str, Text]
    group: Text | None = None


class Parallel(TaggedEntry):
    """Two text files, or folders of them, whose lines are translations of each other: `source` and `target`."""

    gives: ClassVar[tuple[str, ...]] = TASKS["translation"].fields
    reader: Literal["parallel"]
    target: str


class ParallelTexts(DataEntry):
    """The same to pre-train on: a line and its translation as one text (Conneau and Lample 2019, section 3.4)."""

    gives: ClassVar[tuple[str, ...]] = PRETRAINING_FIELDS
    reader: Literal["parallel_texts"]
    target: str


class Dialogues(DataEntry):
    """A conversation a record: `turns` names the column with the list of turns, `text` the key of a turn's text.

    A history has the last `history` turns before the reply.
    """

    gives: ClassVar[tuple[str, ...]] = TASKS["dialogue"].fields
    reader: Literal["dialogues"]
    turns: Text
    text: Text | None = None
    history: Turns


class Squad(DataEntry):
    """SQuAD's json, or tables with its columns; `group` names the column by which tables are split."""

    gives: ClassVar[tuple[str, ...]] = TASKS["question_answering"].fields
    reader: Literal["squad"]
    group: Text | None = None


Entry = Annotated[
    BotocoreDocuments
    | BotocoreOperations
    | BotocoreQuestions
    | BotocoreMethods
    | HomeAssistantStrings
    | HomeAssistantPairs
    | ChitchatDialogues
    | ChitchatDocuments
    | TextFiles
    | Table
    | Parallel
    | ParallelTexts
    | Dialogues
    | Squad,
    Field(discriminator="reader"),
]
