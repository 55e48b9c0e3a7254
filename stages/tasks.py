"""What a downstream task is: a record's fields, the text the model reads, the text it should write, the metrics.

Adding a task is one entry in `TASKS`, one in `params.yaml` under `tasks` and one under `data`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

Record = Mapping[str, str]


@dataclass(frozen=True)
class Task:
    """A text-to-text task. `primary` is the metric that the comparison leads with."""

    fields: tuple[str, ...]  # columns of data/prepared/TASK/*.parquet
    source_text: Callable[[Record], str]
    target_text: Callable[[Record], str]
    metrics: tuple[str, ...]
    primary: str
    baseline: Callable[[Record], str]  # what a program without learning would answer
    baseline_name: str
    answer_in_source: bool = False  # the target is a stretch of the source: an encoder can point at it


def _first_words(text: str, count: int) -> str:
    return " ".join(text.split()[:count])


TASKS: dict[str, Task] = {
    "translation": Task(
        fields=("source", "target"),
        source_text=lambda record: record["source"],
        target_text=lambda record: record["target"],
        metrics=("bleu", "chrf"),
        primary="chrf",
        baseline=lambda record: record["source"],
        baseline_name="copy the source",
    ),
    "summarization": Task(
        fields=("document", "summary"),
        source_text=lambda record: record["document"],
        target_text=lambda record: record["summary"],
        metrics=("rouge1", "rouge2", "rougeL"),
        primary="rougeL",
        baseline=lambda record: _first_words(record["document"], 4),
        baseline_name="first four words",
    ),
    "question_answering": Task(
        fields=("question", "context", "answer"),
        source_text=lambda record: f"question: {record['question']} context: {record['context']}",
        target_text=lambda record: record["answer"],
        metrics=("exact_match", "f1"),
        primary="f1",
        baseline=lambda record: record["context"].split(". ")[0],
        baseline_name="first sentence of the context",
        answer_in_source=True,
    ),
}
