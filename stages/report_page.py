"""The report's page: what pre-training bought first, then how one knows, then what it was made from.

Every text that came from data is escaped. One file: styles and plots are inside.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from stages.estimate import short
from stages.report_costs import Cost
from stages.report_data import data_section
from stages.report_details import details_section, pretraining_words
from stages.report_html import line, link, number_text, paragraph, table
from stages.report_plots import LABELS
from stages.report_table import HEADER, Row, headline
from stages.scores import record_scores
from stages.tasks import LESS_IS_BETTER

EXAMPLES = 2  # of each kind: best, worst, random
_LONGEST = 600  # characters of an example's source
_STYLE = """
:root { --ink: #23272e; --soft: #626973; --line: #e4e7eb; --teal: #0b6e8a; --amber: #b8620e; --paper: #fbfbfa; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; letter-spacing: -.02em; margin: 0 0 .5rem; }
h2 { font-size: 1.25rem; margin: 3rem 0 .75rem; letter-spacing: -.01em; }
h3 { font-size: 1rem; margin: 1.75rem 0 .5rem; text-transform: capitalize; }
p { margin: .5rem 0; } .soft { color: var(--soft); }
.cards { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); margin: 1.75rem 0; }
.card { padding: 1.1rem 1.2rem; }
.card b { display: block; font-size: 2rem; line-height: 1.1; letter-spacing: -.03em; margin: .2rem 0 .1rem; }
.card .gain { color: var(--teal); } .card .loss { color: var(--amber); } .card .unsure { color: var(--soft); }
.card p { font-size: .9rem; } .card .task { text-transform: capitalize; font-weight: 600; margin: 0; }
.wide, details, .card { background: #fff; border: 1px solid var(--line); border-radius: .75rem; }
.wide { overflow-x: auto; padding: .4rem .9rem; }
table { border-collapse: collapse; width: 100%; font-size: .84rem; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; color: var(--soft); white-space: nowrap; }
th, td { padding: .5rem .55rem .5rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
tr:last-child td { border-bottom: 0; } td.number, th.number { text-align: right; white-space: nowrap; }
tr.primary td { font-weight: 600; } td:nth-child(2) { white-space: nowrap; }
code, pre { font: .82rem ui-monospace, Menlo, Consolas, monospace; } code { word-break: break-all; }
pre { overflow-x: auto; margin: .9rem 0 .2rem; }
svg { width: 100%; height: auto; display: block; }
details { padding: .7rem 1rem; margin: .6rem 0; }
summary { cursor: pointer; font-weight: 500; }
dl { display: grid; grid-template-columns: 8rem 1fr; gap: .35rem 1rem; margin: .9rem 0 .2rem; font-size: .92rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; white-space: pre-wrap; }
@media (max-width: 34rem) { dl { grid-template-columns: 1fr; gap: .1rem; } dd { margin-bottom: .5rem; } }
"""
_SCORES = (
    "On texts of the test split, which no training saw; more is better where nothing else is said. One seed: the"
    " intervals say how sure the scores of these models are, not how other seeds would do; that <code>make seeds</code>"
    " measures."
)
_FRAME = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>What pre-training bought</title><style>{style}</style></head>
<body><main>
{body}
</main></body></html>
"""


@dataclass(frozen=True)
class Results:
    """Everything that the page shows."""

    rows: list[Row]
    predictions: dict[str, list[dict[str, Any]]]  # task → test records with each system's answer
    analysis: dict[str, dict[str, Any]]  # task → its analysis.json
    pictures: dict[str, str]  # name → SVG, as stages/report_pictures.py names them
    prepare: dict[str, Any]  # purpose → source → counts
    dropped: list[dict[str, str]]  # samples of what prepare dropped
    leakage: dict[str, Any]  # PURPOSE/SPLIT → what of it stands in training text
    training: dict[str, dict[str, Any]]  # folder of models/ → its training.json
    pretraining: dict[str, Any]  # what evaluate_pretraining measured on held-out text
    configs: dict[str, dict[str, Any]]  # task → config.json of its model
    costs: list[Cost]
    params: str  # all of params.yaml
    lineage: list[tuple[str, str]]
    pages: dict[str, str] = field(default_factory=dict)  # what is to be seen elsewhere → its address


def page(results: Results) -> str:
    """The whole page as HTML."""
    primary = [row for row in results.rows if row.primary]
    about = (
        "Each task was fine-tuned twice with the same data, steps and settings: from the pre-trained model, and from"
        " random weights. The difference is what pre-training bought; brackets hold 95 % bootstrap intervals, p is of a"
        " paired test (approximate randomisation)."
    )
    sections = [
        "<h1>What pre-training bought</h1>",
        f"<p><b>{escape(headline(results.rows))}</b></p>",
        paragraph(about),
        f'<div class="cards">{"".join(map(_card, primary))}</div>',
        "<h2>Scores</h2>",
        paragraph(_SCORES, raw=True),
        f'<div class="wide">{results.pictures["scores"]}</div><p></p>',
        _scores_table(results.rows),
        _signatures(results.rows),
        *details_section(results.analysis, results.pictures, _left_out(results)),
        *_learning(results),
        *_examples(results),
        *_attention(results),
        *data_section(results.prepare, results.leakage, results.dropped),
        *_origins(results),
    ]
    return _FRAME.format(style=_STYLE, body="\n".join(sections))


def _left_out(results: Results) -> dict[str, int]:
    """Task → training pairs that could not be learnt from, which are the same for the control."""
    return {task: results.training[task].get("missing", 0) for task in results.analysis}


def _card(row: Row) -> str:
    number = f'<b class="{row.outcome}">{row.difference.score:+.1f}</b>'
    scale = f'<span class="soft">{escape(row.metric_name)}, {row.records} test records</span>'
    return (
        f'<div class="card"><p class="task">{escape(row.task_name)}</p>{number}{scale}{paragraph(row.verdict())}</div>'
    )


def _scores_table(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        cells = [row.task_name if row.primary else "", row.metric_name]
        numbers = [str(row.pretrained), str(row.scratch), str(row.baseline), row.difference.signed()]
        lines.append(
            line(
                cells,
                [*numbers, row.difference.p_text().removeprefix("p ").removeprefix("= ")],
                "primary" if row.primary else "",
            )
        )
    return table(HEADER[:2], [*HEADER[2:], "p"], lines)


def _signatures(rows: Sequence[Row]) -> str:
    baselines = {row.task_name: row.baseline_name for row in rows}
    words = "; ".join(f"{task}: {name}" for task, name in baselines.items())
    items = "".join(f"<dt>{escape(row.metric_name)}</dt><dd><code>{escape(row.signature)}</code></dd>" for row in rows)
    how = f"<details><summary>How it was measured</summary><dl>{items}</dl></details>"
    return paragraph(f"Trivial baselines: {words}.") + how


def _learning(results: Results) -> Iterable[str]:
    yield "<h2>Learning</h2>"
    for name, picture in _pictures_of("curve", results):
        yield f"<h3>{name}</h3><div class='wide'>{picture}</div>"
    if "bits_per_byte" in results.pretraining:
        yield paragraph(pretraining_words(results.pretraining))
    columns = (
        *("steps", "tokens", "padding", "seconds", "tokens_per_second", "share_of_peak", "parameters"),
        *("validation_loss", "best_step", "weights"),
    )
    lines = [line([name], [number_text(facts.get(c)) for c in columns]) for name, facts in results.training.items()]
    yield "<p></p>" + table(["model"], [column.replace("_", " ") for column in columns], lines)
    if results.costs:
        about = (
            "What <code>python -m stages.estimate</code> tells beforehand, beside what it was. Time includes"
            " validation, memory all of the process (on a GPU: torch's)."
        )
        yield paragraph(about, raw=True)
        costs = []
        for cost in results.costs:
            numbers = [short(cost.estimated), short(cost.taken), f"{cost.taken / cost.estimated:.2f}"]
            costs.append(line([cost.model, cost.quantity], numbers))
        yield table(["model", "cost"], ["estimated", "taken", "taken / estimated"], costs)


def _pictures_of(kind: str, results: Results) -> Iterable[tuple[str, str]]:
    """(What it is of, SVG) of every picture of a kind."""
    for name, picture in results.pictures.items():
        if name.startswith(f"{kind}_"):
            yield escape(name.removeprefix(f"{kind}_").replace("_", " ")), picture


def _examples(results: Results) -> Iterable[str]:
    yield "<h2>Examples</h2>"
    yield paragraph("By the pre-trained model's score on the single record: the best, the worst, and some at random.")
    for row in results.rows:
        records = results.predictions[row.task]
        if not row.primary or not records:
            continue
        references = [record.get("references", record["target"]) for record in records]
        scores = record_scores(row.metric, references, [record["pretrained"] for record in records])
        order = sorted(range(len(records)), key=lambda n: scores[n] if row.metric in LESS_IS_BETTER else -scores[n])
        drawn = random.Random(1).sample(range(len(records)), min(EXAMPLES, len(records)))  # noqa: S311 - no secret
        yield f"<h3>{escape(row.task_name)}</h3>"
        for kind, chosen in (("best", order[:EXAMPLES]), ("worst", order[-EXAMPLES:]), ("random", drawn)):
            for number in chosen:
                yield _example(f"{kind}: {scores[number]:.0f} {row.metric_name}", records[number])


def _example(title: str, record: dict[str, Any]) -> str:
    source = record["source"] if len(record["source"]) <= _LONGEST else record["source"][:_LONGEST] + " …"
    right = "\n".join(record.get("references", [record["target"]]))
    parts = {"source": source, "reference": right} | {LABELS[system]: record[system] for system in LABELS}
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in parts.items())
    summary = f"<summary>{escape(title)} <span class='soft'>{escape(record['source'][:80])}</span></summary>"
    return f"<details>{summary}<dl>{items}</dl></details>"


def _attention(results: Results) -> Iterable[str]:
    yield "<h2>Attention</h2>"
    yield paragraph(
        "The last layer of each pre-trained and fine-tuned model while it answers one test record: every row is a token"
        " that looks, every column one that it can look at, the darker the more (the darkest is the head's largest)."
    )
    for name, picture in _pictures_of("attention", results):
        yield f"<h3>{name}</h3><div class='wide'>{picture}</div>"


def _origins(results: Results) -> Iterable[str]:
    yield "<h2>Made from</h2>"
    about = (
        "<code>git log -S MD5 --oneline -- dvc.lock</code> finds the commit of a hash,"
        " <code>dvc get . PATH --rev COMMIT</code> brings the bytes back."
    )
    yield paragraph(about, raw=True)
    rows = (f"<tr><td>{escape(name)}</td><td><code>{escape(value)}</code></td></tr>" for name, value in results.lineage)
    yield f'<div class="wide"><table>{"".join(rows)}</table></div>'
    yield f"<details><summary>params.yaml</summary><pre>{escape(results.params)}</pre></details>"
    if results.pages:
        links = ", ".join(map(link, results.pages.items()))
        yield paragraph(f"How it went, in Prefect and MLflow: {links}.", raw=True)
