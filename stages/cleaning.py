"""One raw file made clean: records read, cleaned and filtered, as sorted runs, and what was found on the way.

For each text: HTML out, Unicode and white space normalised, personal data masked; of pre-training texts those in other
languages and those that break a rule of quality dropped, and long ones cut; then what is too short, too long or has too
few letters dropped. 53 million characters cost about 12 s of processor time, the optional filters apart; memory is that
of `Runs`, whatever the size of the file.
"""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lightning_modules.errors import PipelineError
from stages.dialogues import last_turns, plain_turns
from stages.languages import language_of
from stages.parallel import count
from stages.params_data import Entry
from stages.params_schema import Prepare
from stages.personal import Masked
from stages.quality import judge
from stages.readers import GROUP, READERS
from stages.samples import Largest, Samples
from stages.sources import Bad, Row
from stages.splits import KEYS, Runs, digest
from stages.tasks import PRETRAINING, PRETRAINING_FIELDS, TASKS
from stages.text import cut, failed_filter, normalise, strip_html

QUARANTINE = "quarantine.jsonl"
_SURE = 0.5  # a text is in another language where that is more probable than all others together
_COUNT_EVERY = 1000  # records between two reports of progress


@dataclass(frozen=True)
class FileJob:
    """One raw file, read for one purpose into sorted runs in `folder`."""

    purpose: str
    entry: Entry
    files: tuple[Path, ...]  # one, or two that are read side by side
    folder: Path
    limits: Prepare


@dataclass
class FileCounts:
    """What came of one raw file. read + cut = quarantined + dropped + candidates."""

    read: int = 0
    cut: int = 0  # pieces that cutting added
    trimmed: int = 0  # sources whose end, or of a dialogue the beginning, was left out
    quarantined: int = 0
    dropped: Counter[str] = field(default_factory=Counter)  # by the filter that did it
    lines_removed: Counter[str] = field(default_factory=Counter)  # by the rule that did it
    masked: Counter[str] = field(default_factory=Counter)  # by what was masked
    samples: Samples = field(default_factory=Samples)
    largest: Largest = field(default_factory=Largest)
    first_problem: str = ""
    runs: list[Path] = field(default_factory=list)


def fields_of(purpose: str) -> tuple[str, ...]:
    """The text columns of a purpose."""
    return PRETRAINING_FIELDS if purpose == PRETRAINING else TASKS[purpose].fields


def columns_of(purpose: str) -> list[str]:
    """All columns of a purpose's files: keys, fields, and those that not every reader fills."""
    return [*KEYS, *fields_of(purpose), *_extras_of(purpose)]


def _extras_of(purpose: str) -> tuple[str, ...]:
    return () if purpose == PRETRAINING else TASKS[purpose].extras


def source_side(purpose: str) -> tuple[str, ...]:
    """The columns that the model reads: all but the last, which it is to write. They make a record's identity."""
    return PRETRAINING_FIELDS if purpose == PRETRAINING else TASKS[purpose].fields[:-1]


def clean_file(job: FileJob) -> FileCounts:
    """Reads one raw file, cleans its records and writes them as sorted runs, and what cannot be used as quarantine.

    A second call does the same again: what a first one, that was killed, left in `job.folder` goes. Raises
    PipelineError where every record of the file is bad.
    """
    shutil.rmtree(job.folder, ignore_errors=True)
    job.folder.mkdir(parents=True)
    file = job.files[0].as_posix()
    runs, cleaner = Runs(job.folder, columns_of(job.purpose)), _Cleaner(job)
    counts = cleaner.counts
    with (job.folder / QUARANTINE).open("w", encoding="utf-8") as quarantine:
        for item in READERS[job.entry.reader].read(job.entry, *job.files):
            counts.read += 1
            if isinstance(item, Bad):
                counts.quarantined += 1
                counts.first_problem = counts.first_problem or f"line {item.line}: {item.reason}"
                line = {"file": file, "line": item.line, "reason": item.reason, "purpose": job.purpose}
                quarantine.write(json.dumps(line, ensure_ascii=False) + "\n")
            else:
                cleaner.clean(item, runs.add)
            if counts.read % _COUNT_EVERY == 0:
                count(_COUNT_EVERY)
    runs.flush()
    count(counts.read % _COUNT_EVERY)
    if counts.quarantined and counts.quarantined == counts.read:
        raise PipelineError(
            f"{file}: not one of its {counts.read} records can be used for {job.purpose}; {counts.first_problem}"
        )
    counts.runs = runs.paths
    return counts


class _Cleaner:
    """Cleans the records of one file and counts what it does to them."""

    def __init__(self, job: FileJob) -> None:
        self.counts = FileCounts()
        self._job = job
        self._limits = job.limits
        self._plain = READERS[job.entry.reader].plain
        self._read = len(source_side(job.purpose))

    def clean(self, row: Row, keep: Callable[[tuple[str, ...]], None]) -> None:
        """Passes what is usable of a record on. The filters judge what the model is to read."""
        job, fields = self._job, fields_of(self._job.purpose)
        raw = [row.values[name] for name in fields]
        texts = [
            normalise(text if self._plain else _without_html(name, text))
            for name, text in zip(fields, raw, strict=True)
        ]
        group = row.values[GROUP] or digest(*texts[: self._read])  # before masking, which is to move no record
        extras = [row.values.get(name, "") for name in _extras_of(job.purpose)]
        if self._limits.mask_personal:
            texts, extras = self._masked(texts, extras)
        for piece in self._pieces(texts, extras):
            # What a reader leaves empty is meant; what cleaning emptied held nothing.
            emptied = any(before and not after for before, after in zip(raw, piece, strict=True))
            problem = "empty" if emptied else failed_filter("\n".join(piece[: self._read]), self._limits)
            if problem:
                self._drop(problem, piece)
            else:
                piece[0] = f"{job.entry.tag}{piece[0]}"
                self.counts.largest.add(group, job.files[0].as_posix(), sum(map(len, piece)))
                keep((digest(*piece[: self._read]), group, job.entry.source, *piece, *extras))

    def _pieces(self, texts: list[str], extras: list[str]) -> Iterator[list[str]]:
        """What is left of a record to be judged by `failed_filter`: one, but of a long pre-training text several."""
        most, purpose = self._limits.max_characters, self._job.purpose
        if purpose == PRETRAINING:
            text = texts[0]
            if len(text) > most or not failed_filter(text, self._limits):
                verdict = self._filtered(text)
                if verdict is None:
                    return
                text = verdict
            pieces = cut(text, most)
            self.counts.cut += len(pieces) - 1
            yield from ([piece] for piece in pieces)
            return
        if TASKS[purpose].keep == "end" and len(texts[0]) > most:
            texts[0] = last_turns(texts[0], most)
            self.counts.trimmed += 1
        elif TASKS[purpose].keep == "start":
            self._leave_end_out(texts, extras)
        yield texts

    def _leave_end_out(self, texts: list[str], extras: list[str]) -> None:
        """Cuts the last text of a source that is too long; not where an answer to be pointed at would go with it."""
        last = self._read - 1
        room = self._limits.max_characters - sum(len(text) + 1 for text in texts[:last])
        if not 0 < room < len(texts[last]):
            return
        beginning = cut(texts[last][: room + 1], room)[0]
        if TASKS[self._job.purpose].kind == "span":
            start = _place(texts[-1], texts[last], extras)
            if start < 0 or start + len(texts[-1]) > len(beginning):
                return
        texts[last] = beginning
        self.counts.trimmed += 1

    def _filtered(self, text: str) -> str | None:
        """What language and rules of quality leave of a whole pre-training text; None: they drop it."""
        english = True
        if self._limits.languages:
            found = language_of(text)
            if found.probability > _SURE and found.language not in self._limits.languages:
                self._drop("languages", [text], f"{found.language} ({found.probability:.2f})")
                return None
            english = found.probability <= _SURE or found.language == "en"
        if not self._limits.quality:
            return text
        verdict = judge(text, self._limits.quality, english)
        for rule, line in verdict.removed:
            self.counts.lines_removed[rule] += 1
            self._sample(rule, [line], "a line")
        if verdict.rule:
            self._drop(verdict.rule, [text], verdict.detail)
            return None
        return verdict.text

    def _masked(self, texts: list[str], extras: list[str]) -> tuple[list[str], list[str]]:
        """Masks personal data. Answers that stand in their context become what stands there then."""
        fields, kinds = fields_of(self._job.purpose), self._limits.mask_personal
        masked = [Masked(text, kinds) for text in texts]
        clean = [one.text for one in masked]
        if _extras_of(self._job.purpose) == ("answer_start", "other_answers") and texts[fields.index("answer")]:
            context, answer = fields.index("context"), fields.index("answer")
            start = _place(texts[answer], texts[context], extras)
            if start >= 0:
                place, end = masked[context].place(start, start + len(texts[answer]))
                clean[answer], extras[0] = masked[context].text[place:end], str(place) if extras[0] else ""
            extras[1] = self._others_masked(extras[1], texts[context], masked[context])
        for one in masked:
            self.counts.masked += one.counts
        return clean, extras

    def _others_masked(self, others: str, context: str, masked: Masked) -> str:
        """The column `other_answers`: each as it stands at its first place in the masked context, or by itself."""
        found = []
        for other in json.loads(others) if others else ():
            if (start := context.find(other)) >= 0:
                place, end = masked.place(start, start + len(other))
                found.append(masked.text[place:end])
            else:
                found.append(Masked(other, self._limits.mask_personal).text)
        return json.dumps(found, ensure_ascii=False) if found else ""

    def _drop(self, name: str, piece: list[str], detail: str = "") -> None:
        self.counts.dropped[name] += 1
        self._sample(name, piece[: self._read], detail)

    def _sample(self, name: str, texts: list[str], detail: str) -> None:
        text = "\n".join(texts)
        if text:
            self.counts.samples.add(self._job.purpose, self._job.entry.source, name, digest(text), text, detail)


def _without_html(field: str, text: str) -> str:
    return plain_turns(text) if field == "history" else strip_html(text)


def _place(answer: str, context: str, extras: list[str]) -> int:
    """Where the data says that the answer stands, else its first place; -1: nowhere."""
    start = int(extras[0]) if extras and extras[0] else -1
    return start if start >= 0 and context.startswith(answer, start) else context.find(answer)
