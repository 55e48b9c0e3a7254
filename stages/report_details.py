"""The report's sections about what one score hides: lengths, far evidence, likelihood, calibration, confusion."""

from collections.abc import Iterable
from html import escape
from typing import Any

from stages.report_html import line, paragraph, table
from stages.report_table import NAMES, Interval, unknown_words

Json = dict[str, Any]
_LIKELIHOOD = (
    "How probable each model finds the references, which it does not see: the perplexity of a token depends on the"
    " tokenizer, bits per byte of text do not. Less is better; brackets hold 95 % bootstrap intervals."
)
_ASKED = {
    "length": "Is a long source answered worse than a short one?",
    "evidence": "Is an answer found that stands far from the question?",
    "calibration": "Is an answer right as often as the model finds it probable? On the line, a model knows what it"
    " knows; below it, it is too sure. The error is the mean distance from the line (Guo et al. 2017).",
    "confusion": "What is taken for what, by the pre-trained model?",
}


def details_section(analysis: dict[str, Json], pictures: dict[str, str], left_out: dict[str, int]) -> Iterable[str]:
    """HTML of all tasks' details; nothing of what was not measured. `left_out`: training pairs by task."""
    yield "<h2>What one score hides</h2>"
    cut = [f"{task.replace('_', ' ')} {details['cut']}" for task, details in analysis.items() if details["cut"]]
    if cut:
        yield paragraph(f"Sources longer than the model reads, and so cut: {', '.join(cut)}.")
    missing = [f"{task.replace('_', ' ')} {count:,}" for task, count in left_out.items() if count]
    if missing:
        told = "Training pairs left out, whose answer does not stand in the source or is too long"
        yield paragraph(f"{told}: {', '.join(missing)}.")
    for kind, question in _ASKED.items():
        shown = [(task, pictures[f"{kind}_{task}"]) for task in analysis if f"{kind}_{task}" in pictures]
        if shown:
            yield paragraph(question)
        for task, picture in shown:
            yield f"<h3>{escape(task.replace('_', ' '))}</h3><div class='wide'>{picture}</div>"
    yield from _answerable(analysis)
    lines = list(_likelihoods(analysis))
    if lines:
        yield "<h3>Likelihood</h3>"
        yield paragraph(_LIKELIHOOD)
        yield table(("task", "measure"), ("pre-trained", "from scratch", "difference"), lines)
        for task, details in analysis.items():
            if share := details.get("unknown_share"):
                yield paragraph(f"{task.replace('_', ' ').capitalize()}: {unknown_words(share)}")


def pretraining_words(measured: Json) -> str:
    """How well the pre-trained model does what it was trained for, in a sentence."""
    objective = ", ".join(measured["objective"])
    shown = "; ".join(f"{_fine(Interval(**measured[name]))} {NAMES[name]}" for name in ("perplexity", "bits_per_byte"))
    told = f"{objective}, {measured['tokens']:,} predictions"
    unknown = f" {unknown_words(share)}" if (share := measured.get("unknown_share")) else ""
    return f"On the test split of the pre-training text ({told}): {shown}.{unknown}"


def _answerable(analysis: dict[str, Json]) -> Iterable[str]:
    """Of tasks whose questions may have no answer: the score of those that have one, and of those that have none."""
    lines = []
    for task, details in analysis.items():
        for kind, found in details.get("by_answer", {}).items():
            scores = [str(Interval(**found[system])) for system in ("pretrained", "scratch")]
            name = "with an answer" if kind == "answer" else "without an answer"
            lines.append(line((task.replace("_", " "), name), [str(found["records"]), *scores]))
    if lines:
        yield "<h3>Questions with and without an answer</h3>"
        yield table(("task", "questions"), ("records", "pre-trained", "from scratch"), lines)


def _likelihoods(analysis: dict[str, Json]) -> Iterable[str]:
    for task, details in analysis.items():
        for number, (name, systems) in enumerate(details.get("likelihood", {}).items()):
            found = {system: Interval(**values) for system, values in systems.items()}
            numbers = [_fine(found["pretrained"]), _fine(found["scratch"]), _fine(found["difference"], "+")]
            yield line(("" if number else task.replace("_", " "), NAMES[name]), numbers)


def _fine(value: Interval, sign: str = "") -> str:
    return f"{value.score:{sign}.2f} [{value.low:{sign}.2f}, {value.high:{sign}.2f}]"
