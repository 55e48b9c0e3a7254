"""What a downstream task is: a record's fields, the text the model reads, the text it should write, how it is judged.

Adding a task is one entry in `TASKS`, one in `params.yaml` under `tasks` and one under `data`: docs/adding-a-task.md.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Record = Mapping[str, str]

PRETRAINING = "pretraining"  # the purpose that is not a task
PRETRAINING_FIELDS = ("text",)
WRITERS = ("encoder_decoder", "decoder")
ALL = ("encoder", *WRITERS)
LANGUAGE = r"[A-Za-z]{2,3}(?:[-_][A-Za-z0-9]+)*"
_TAG = re.compile(rf"\Ato {LANGUAGE}: ")


@dataclass(frozen=True)
class Task:
    """A task: source text in, target text out. `primary` is the metric that the comparison leads with.

    An empty target is an answer, too: that a question has none in its context, as in SQuAD 2.0.
    """

    fields: tuple[str, ...]  # columns of data/prepared/TASK/*.parquet: what the model reads, and last what it writes
    source_text: Callable[[Record], str]
    target_text: Callable[[Record], str]
    metrics: tuple[str, ...]
    primary: str
    baseline: Callable[[Record], str] | None  # what a program without learning says; None: the commonest target
    baseline_name: str
    kind: Literal["text", "span", "class"] = "text"  # an encoder cannot do it, points at a span, or names a class
    architectures: tuple[str, ...] = WRITERS
    decoding: dict[str, Any] = field(default_factory=dict)  # fields of Decoding that differ from greedy search
    keep: Literal["start", "end"] = "start"  # of a source that is too long
    extras: tuple[str, ...] = ()  # further columns, "" where a reader does not give them


def language_tag(language: str) -> str:
    """What a source begins with where one model translates into several languages (Johnson et al. 2017, section 3)."""
    return f"to {language}: "


def _first_words(text: str, count: int) -> str:
    return " ".join(text.split()[:count])


TASKS: dict[str, Task] = {
    "translation": Task(
        fields=("source", "target"),
        source_text=lambda record: record["source"],
        target_text=lambda record: record["target"],
        metrics=("bleu", "chrf", "ter"),
        primary="chrf",
        baseline=lambda record: _TAG.sub("", record["source"]),
        baseline_name="copy the source",
        decoding={"beams": 4},
    ),
    "summarization": Task(
        fields=("document", "summary"),
        source_text=lambda record: record["document"],
        target_text=lambda record: record["summary"],
        metrics=("rouge1", "rouge2", "rougeL"),
        primary="rougeL",
        baseline=lambda record: _first_words(record["document"], 4),
        baseline_name="first four words",
        decoding={"beams": 4},
    ),
    "question_answering": Task(
        fields=("question", "context", "answer"),
        source_text=lambda record: f"question: {record['question']} context: {record['context']}",
        target_text=lambda record: record["answer"],
        metrics=("exact_match", "f1"),
        primary="f1",
        baseline=lambda record: record["context"].split(". ")[0],
        baseline_name="first sentence of the context",
        decoding={"beams": 4},
        kind="span",
        architectures=ALL,
        extras=("answer_start",),  # the answer's first character in the context
    ),
    "dialogue": Task(
        fields=("history", "reply"),  # of the history a turn a line, the oldest first
        source_text=lambda record: record["history"],
        target_text=lambda record: record["reply"],
        metrics=("f1", "distinct1", "distinct2"),
        primary="f1",
        baseline=lambda record: record["history"].split("\n")[-1],
        baseline_name="repeat the last turn",
        decoding={"sample": True, "temperature": 0.7},  # the most probable reply is the same dull one to everything
        keep="end",
    ),
    "classification": Task(
        fields=("text", "label"),
        source_text=lambda record: record["text"],
        target_text=lambda record: record["label"],
        metrics=("accuracy", "macro_f1"),
        primary="macro_f1",
        baseline=None,
        baseline_name="commonest label",
        kind="class",
        architectures=ALL,
    ),
}
