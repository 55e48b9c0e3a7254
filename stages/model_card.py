"""A model card for each task's model, in the Hugging Face hub's format, of the same facts as the report.

The YAML at its head holds the scores as the hub reads them (`model-index`); the rest is after Mitchell et al. 2019
(arXiv:1810.03993): what it is, what it was made from, how well it does and beside what, where its limits are.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from stages.report_details import pretraining_words
from stages.report_page import Results
from stages.report_table import NAMES, Interval, Row, unknown_words

PIPELINE_TAGS = {
    "translation": "translation",
    "summarization": "summarization",
    "question_answering": "question-answering",
    "classification": "text-classification",
}
_OTHER_TAG = "text-generation"
_SHAPE = ("architecture", "d_model", "heads", "d_ff", "encoder_layers", "decoder_layers", "vocab_size", "positions")
_COURSE = ("steps", "best_step", "tokens", "seconds", "devices", "precision", "validation_loss")


def model_card(task: str, results: Results) -> str:
    """The card as Markdown."""
    rows = [row for row in results.rows if row.task == task]
    config, training = results.configs[task], results.training[task]
    name = task.replace("_", " ")
    shape = {"parameters": f"{training['parameters']:,}"} | _chosen(config["transformer"], _SHAPE)
    return f"""---
{_front_matter(task, rows, results)}
---

# {name.capitalize()}, pre-trained and fine-tuned

{rows[0].verdict()}

## The model

{_table(("", ""), shape | {key.replace("_", " "): value for key, value in config["limits"].items()})}

It was pre-trained on unlabelled text, then fine-tuned for {name}. Its folder loads with
`lightning_modules.text_to_text.TextToText`; `python -m lightning_modules.interop.huggingface export` writes it for
`transformers`.

## How well it does

On {rows[0].records} records of the test split, which no training saw, beside the same model without pre-training and a
trivial baseline ({rows[0].baseline_name}). Brackets: 95 % bootstrap intervals over records; p: approximate
randomisation. One seed.

{_scores(rows)}

{_list(_measured(results.analysis[task]))}

Measured with:

{_list(f"{row.metric_name}: `{row.signature}`" for row in rows)}

## What it learnt from

{_data(task, results)}

## How it was trained

{pretraining_words(results.pretraining) if "bits_per_byte" in results.pretraining else ""}

{_table(("", "pre-training", "fine-tuning"), _courses(results.training.get("pretrained", {}), training))}

## Limits

A model knows what its text held, mistakes and prejudices included, and nothing was done to keep it from writing harmful
or untrue text. It was measured on texts of the same kind and origin as it learnt from; on others it does worse.

## Made from

{_table(("", ""), {name: f"`{value}`" for name, value in results.lineage})}
"""


def _front_matter(task: str, rows: Sequence[Row], results: Results) -> str:
    """JSON is YAML, so nothing in a name can break out of its place."""
    tag = PIPELINE_TAGS.get(task, _OTHER_TAG)
    origin = ", ".join(results.prepare.get(task, {})) or task
    measured = [{"type": row.metric.lower(), "name": row.metric_name, "value": row.pretrained.score} for row in rows]
    entry = {
        "task": {"type": tag, "name": task.replace("_", " ")},
        "dataset": {"type": task, "name": origin, "split": "test"},
        "metrics": measured,
    }
    facts: dict[str, Any] = {
        "pipeline_tag": tag,
        "tags": ["transformer-pretraining-pipeline", task],
        "model-index": [{"name": task, "results": [entry]}],
    }
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in facts.items()]
    return "\n".join(
        [*lines, "# license: yours to choose before you publish; it must suit the text that the model learned from"]
    )


def _scores(rows: Sequence[Row]) -> str:
    header = ("metric", "pre-trained", "from scratch", "baseline", "difference", "p")
    lines = {
        row.metric_name: (row.pretrained, row.scratch, row.baseline, row.difference.signed(), row.difference.p_text())
        for row in rows
    }
    return _table(header, lines)


def _measured(details: dict[str, Any]) -> Iterable[str]:
    """What the analysis found, a sentence each."""
    for name, systems in details.get("likelihood", {}).items():
        found = {system: Interval(**values) for system, values in systems.items()}
        yield (
            f"{NAMES[name]} of the references: {found['pretrained'].score:.2f}, from scratch "
            f"{found['scratch'].score:.2f} (less is better)"
        )
    if share := details.get("unknown_share"):
        yield unknown_words(share)
    for kind, words in (("by_length", "words of the source"), ("by_evidence", "words before the answer")):
        if buckets := details.get(kind):
            parts = (f"{Interval(**one['pretrained'])} at {one['low']}–{one['high']}" for one in buckets)
            yield f"by {words}: {'; '.join(parts)}"
    if calibrated := details.get("calibration", {}).get("pretrained"):
        yield (
            f"expected calibration error: {calibrated['error']:.2f}; its answers are right in {calibrated['right']:.0%}"
            f" of the cases, and it finds them {calibrated['probability']:.0%} probable on average"
        )


def _data(task: str, results: Results) -> str:
    lines = {}
    for purpose in ("pretraining", task):
        for source, entry in results.prepare.get(purpose, {}).items():
            kept = entry.get("kept", {})
            counts = [kept.get(split, 0) for split in ("train", "validation", "test")]
            lines[f"{purpose.replace('_', ' ')}: {source}"] = [f"{count:,}" for count in counts]
    return _table(("texts or pairs", "train", "validation", "test"), lines)


def _courses(pretraining: dict[str, Any], finetuning: dict[str, Any]) -> dict[str, Sequence[str]]:
    return {name.replace("_", " "): [_shown(one.get(name)) for one in (pretraining, finetuning)] for name in _COURSE}


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.2f}"
    return f"{value:,}" if isinstance(value, int) else "–" if value is None else str(value)


def _chosen(facts: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name.replace("_", " "): facts[name] for name in names if name in facts}


def _table(header: Sequence[str], lines: dict[str, Any]) -> str:
    rows = [(name, *(cells if isinstance(cells, list | tuple) else [cells])) for name, cells in lines.items()]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in (header, ["---"] * len(header), *rows))


def _list(sentences: Iterable[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)
