"""What a downstream task is: a record's fields, the text the model reads, the text it should write, how it is judged.

Adding a task is one entry in `TASKS`, one in `params.yaml` under `tasks` and one under `data`: docs/adding-a-task.md.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lightning_modules.errors import PipelineError

Record = Mapping[str, str]

PRETRAINING = "pretraining"  # the purpose that is not a task
PRETRAINING_FIELDS = ("text",)
WRITERS = ("encoder_decoder", "decoder")
ALL = ("encoder", *WRITERS)
LESS_IS_BETTER = {"ter", "perplexity", "bits_per_byte"}
LANGUAGE = r"[A-Za-z]{2,3}(?:[-_][A-Za-z0-9]+)*"
_MARK = re.compile(r"(?<= )context:(?= )")  # as lightning_modules/windows.py looks for it
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
    # What a program without learning says; None: the commonest target; or the first words of the first field, as many
    # as targets of the training split have.
    baseline: Callable[[Record], str] | Literal["first words"] | None
    baseline_name: str
    kind: Literal["text", "span", "class"] = "text"  # an encoder cannot do it, points at a span, or names a class
    architectures: tuple[str, ...] = WRITERS
    decoding: dict[str, Any] = field(default_factory=dict)  # fields of Decoding that differ from greedy search
    # Of a source that is too long; "whole": what is written says all of it, so in `prepare` the record is dropped.
    keep: Literal["start", "end", "whole"] = "start"
    extras: tuple[str, ...] = ()  # further columns, "" where a reader does not give them

    def __post_init__(self) -> None:
        """Raises PipelineError for a leading metric of which less is better."""
        if self.primary in LESS_IS_BETTER:
            raise PipelineError(
                f"a task cannot be led by {self.primary}, of which less is better: the best checkpoint, the champion "
                f"and promotion.min_score go by more. Lead with chrf, bleu, rougeL, f1 or accuracy; {self.primary} may "
                "stand among its metrics"
            )

    def references(self, record: Record) -> str | list[str]:
        """What counts as right: the target, or with a column `other_answers` (a list in JSON) that and these."""
        target, others = self.target_text(record), record.get("other_answers")
        return [target, *json.loads(others)] if others else target


def language_tag(language: str) -> str:
    """What a source begins with where one model translates into several languages (Johnson et al. 2017, section 3)."""
    return f"to {language}: "


def untagged(source: str) -> str:
    """A source without its language tag: as the same text stands in other data."""
    return _TAG.sub("", source)


def _question_source(record: Record) -> str:
    """Question and context, each behind its mark. Where the mark "context:" stands in the question, it is parted there:
    the context begins behind the first one."""
    asked = _MARK.sub("context :", f"question: {record['question']} ")
    return f"{asked}context: {record['context']}"


TASKS: dict[str, Task] = {
    "translation": Task(
        fields=("source", "target"),
        source_text=lambda record: record["source"],
        target_text=lambda record: record["target"],
        metrics=("bleu", "chrf", "ter"),
        primary="chrf",
        baseline=lambda record: untagged(record["source"]),
        baseline_name="copy the source",
        decoding={"beams": 4},
        keep="whole",
    ),
    "summarization": Task(
        fields=("document", "summary"),
        source_text=lambda record: record["document"],
        target_text=lambda record: record["summary"],
        metrics=("rouge1", "rouge2", "rougeL"),
        primary="rougeL",
        baseline="first words",
        baseline_name="first words",
        decoding={"beams": 4},
    ),
    "question_answering": Task(
        fields=("question", "context", "answer"),
        source_text=_question_source,
        target_text=lambda record: record["answer"],
        metrics=("exact_match", "f1"),
        primary="f1",
        baseline=lambda record: record["context"].split(". ")[0],
        baseline_name="first sentence of the context",
        decoding={"beams": 4},
        kind="span",
        architectures=ALL,
        extras=("answer_start", "other_answers"),  # the answer's first character in the context; what is right, too
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
