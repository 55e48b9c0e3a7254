"""Questions about a text in the format of SQuAD (Rajpurkar et al. 2016; 2018 for those that the text does not answer).

Reads SQuAD's own json (version 1.1 or 2.0; held in memory whole) and tables with its columns, as the Hugging Face hub
has them: question, context, answers {text, answer_start}, title. Costs about 50 µs a question.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning_modules.errors import PipelineError
from stages.raw_files import format_of
from stages.sources import Bad, Row, group_at, read_json, read_rows, unusable
from stages.splits import digest
from stages.text import normalise


def squad_rows(file: Path, group: str | None) -> Iterator[Row | Bad]:
    """Records with question, context, answer, answer_start, other_answers and group: in json the article's title.

    In tables the group is what column `group` says, and Bad a row in which it says nothing; without `group` it is the
    context: the same context is never in two splits.

    A question without an answer in the context has the answer "". `answer_start` is the answer's first character in
    the context, both normalised, as text. In json, `line` counts questions from 1. Of several answers the first is to
    be learned; `other_answers` has those that are not the same, a list in JSON, "" where there are none.
    """
    if format_of(file) == ".json":
        for number, question in enumerate(_questions(file), start=1):
            yield _record(number, question, bool(question.get("is_impossible")))
        return
    for row in read_rows(file, ["question", "context", "answers", *([group] if group else [])]):
        yield row if isinstance(row, Bad) else _of_table(row, group)


def _of_table(row: Row, group: str | None) -> Row | Bad:
    title = group_at(row, group)
    if isinstance(title, Bad):
        return title
    return _record(row.line, row.values | {"title": title}, may_have_none=True)


def _questions(file: Path) -> Iterator[dict[str, Any]]:
    """The questions of SQuAD's json, each with the context and the title that stand around it."""
    whole = read_json(file)
    try:
        for article in whole["data"]:
            for paragraph in article["paragraphs"]:
                around = {"context": paragraph["context"], "title": article.get("title", "")}
                for question in paragraph["qas"]:
                    yield {**question, **around}
    except (KeyError, TypeError, AttributeError) as error:
        raise PipelineError(f"{file} is not SQuAD's json ({type(error).__name__}: {error})") from None


def _record(number: int, values: Mapping[str, Any], may_have_none: bool) -> Row | Bad:
    try:
        question, context, answers = (values[name] for name in ("question", "context", "answers"))
        for name, text in (("question", question), ("context", context)):
            if problem := unusable(text):
                return Bad(number, f"its {name} is {problem}")
        texts, starts = _answers(answers)
        found = normalise(context)
        if not found:
            return Bad(number, "its context is empty")
        record = {"question": question, "context": found}
        record["group"] = str(values.get("title") or "").strip() or digest(found)
        if problem := unusable(record["group"]):
            return Bad(number, f"its title is {problem}")
        if not texts or values.get("is_impossible"):
            if not may_have_none:
                return Bad(number, "it has no answer, and is_impossible does not say that there is none")
            return Row(number, record | {"answer": "", "answer_start": "", "other_answers": ""})
        answer, about = normalise(texts[0]), len(normalise(context[: starts[0]]))
        others = [other for other in dict.fromkeys(map(normalise, texts[1:])) if other not in ("", answer)]
    except (KeyError, TypeError, IndexError) as error:
        return Bad(number, f"not a question in the format of SQuAD ({type(error).__name__}: {error})")
    start = _place(answer, found, about)
    if start is None:
        return Bad(number, "its answer does not stand in its context")
    if problem := next(filter(None, map(unusable, others)), None):
        return Bad(number, f"an answer of it is {problem}")
    told = json.dumps(others, ensure_ascii=False) if others else ""
    return Row(number, record | {"answer": answer, "answer_start": str(start), "other_answers": told})


def _answers(answers: Any) -> tuple[list[str], list[int]]:
    """Texts and places, from a list of answers or from the hub's two lists. Raises KeyError or TypeError."""
    if isinstance(answers, Mapping):
        return list(answers["text"]), list(answers["answer_start"])
    return [answer["text"] for answer in answers], [answer["answer_start"] for answer in answers]


def _place(answer: str, context: str, about: int) -> int | None:
    """Where `answer` stands in `context`, of several places the nearest to `about`: cleaning moves texts a little."""
    places = list[int]()
    place = context.find(answer) if answer else -1
    while place >= 0:
        places.append(place)
        place = context.find(answer, place + 1)
    return min(places, key=lambda place: abs(place - about), default=None)
