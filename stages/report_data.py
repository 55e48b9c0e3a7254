"""The report's section about the data: what came in, what was dropped and why, with samples, and what is leaked."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from html import escape
from typing import Any

from stages.report_html import line, number_text, paragraph, table

Json = dict[str, Any]
_WHY = {
    "empty": "nothing is left without markup",
    "min_characters": "shorter than prepare.min_characters",
    "max_characters": "longer than prepare.max_characters",
    "min_letter_share": "fewer letters than prepare.min_letter_share",
    "languages": "in a language that is not among prepare.languages",
    "near_duplicates": "nearly the same as a text that stays",
    "decontaminate": "holds a test record",
    "weights": "left out by a weight below 1",
}
_LONG_SAMPLE = 120  # characters of a sample in its summary


def data_section(prepare: Json, leakage: Json, dropped: list[dict[str, str]]) -> Iterable[str]:
    """HTML of what prepare and leakage counted, and of prepare's samples of what it dropped."""
    yield "<h2>Data</h2>"
    entries = [(purpose, source, of) for purpose, sources in prepare.items() for source, of in sources.items()]
    splits = list(dict.fromkeys(split for _, _, entry in entries for split in entry["kept"]))
    header = ["read", "cut", "repeated", "quarantined", "dropped", "duplicates", *splits, "characters kept"]
    lines = []
    for purpose, source, entry in entries:
        numbers = [entry["read"], entry["cut"], entry["repeated"], entry["quarantined"]]
        numbers += [sum(entry["dropped"].values()), entry["duplicates"]]
        numbers += [*(entry["kept"][split] for split in splits), entry["characters"]]
        lines.append(line([_words(purpose), source], list(map(number_text, numbers))))
    yield table(["purpose", "source"], header, lines)
    yield paragraph(
        "Read, cut (pieces that cutting long texts added) and repeated (copies that weights added) are together"
        " quarantined, dropped, duplicates and what the splits hold."
    )
    yield from _dropped(entries, dropped)
    yield paragraph("Records held out of which so many word n-grams stand in training text that they count as leaked:")
    leaked = [
        line([_words(name)], [number_text(one["records"]), number_text(one["leaked"]), f"{one['share']:.1%}"])
        for name, one in leakage.items()
    ]
    yield table(["held out"], ["records", "leaked", "share"], leaked)


def _dropped(entries: list[tuple[str, str, Json]], samples: list[dict[str, str]]) -> Iterator[str]:
    lines = list(_reasons(entries))
    if not lines:
        return
    yield "<h3>What was dropped and why</h3>"
    yield table(["purpose", "source", "what", "why"], ["number", "of those read"], lines)
    shown: dict[tuple[str, str, str], list[dict[str, str]]] = defaultdict(list)
    for sample in samples:
        shown[sample["purpose"], sample["source"], sample["filter"]].append(sample)
    if shown:
        yield paragraph("Samples, at random:")
    for (purpose, source, name), some in shown.items():
        items = "".join(
            f"<dt>{escape(sample.get('detail', ''))}</dt><dd>{escape(sample['text'])}</dd>" for sample in some
        )
        first = f"<span class='soft'>{escape(some[0]['text'][:_LONG_SAMPLE])}</span>"
        title = escape(f"{_words(purpose)}, {source}: {_words(name)}")
        yield f"<details><summary>{title} {first}</summary><dl>{items}</dl></details>"


def _reasons(entries: list[tuple[str, str, Json]]) -> Iterator[str]:
    """A line for each filter that dropped something, for cut sources, each rule that took lines out, each mask."""
    for purpose, source, entry in entries:
        whole = entry["read"] + entry["cut"]
        for name, number in entry["dropped"].items():
            if number:
                words = [_words(purpose), source, _words(name), _WHY.get(name, "a rule of prepare.quality")]
                yield line(words, [number_text(number), f"{number / whole:.2%}"])
        if entry["trimmed"]:
            words = [_words(purpose), source, "trimmed", "a source longer than prepare.max_characters lost an end"]
            yield line(words, [number_text(entry["trimmed"]), f"{entry['trimmed'] / whole:.2%}"])
        for kind, what in (("lines_removed", "a line taken out by prepare.quality"), ("masked", "masked in the text")):
            for name, number in entry[kind].items():
                yield line([_words(purpose), source, _words(name), what], [number_text(number), ""])


def _words(name: str) -> str:
    return name.replace("_", " ")
