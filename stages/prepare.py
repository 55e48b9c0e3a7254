"""Clean, deduplicate and split the texts of every purpose: data/raw → data/prepared, reports/prepare.json.

In this order: read and decode; strip HTML; normalise Unicode and white space; cut long pre-training texts; filter;
drop exact duplicates; split by the hash of the group. Records that cannot be read go to data/prepared/quarantine.jsonl.
One process a core, one raw file a job: 53 million characters cost about 12 s of processor time; each process takes up
to 0.4 GB, however much the data.
"""

import argparse
import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lightning_modules.errors import PipelineError
from stages.console import progress, run_stage, stage_parser
from stages.dialogues import last_turns
from stages.outputs import whole_directory, whole_file
from stages.parallel import cores, count, ordered_results
from stages.params import load_params
from stages.params_data import PRETRAINING, PRETRAINING_FIELDS, Entry
from stages.params_schema import Params, Prepare
from stages.readers import GROUP, READERS, entry_files
from stages.sources import Bad, Row
from stages.splits import KEYS, SPLITS, Kept, Runs, digest, write_splits
from stages.tasks import TASKS
from stages.text import FILTERS, cut, failed_filter, normalise, strip_html

Report = dict[str, dict[str, dict[str, int | dict[str, int]]]]  # purpose → source → counts
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
    trimmed: int = 0  # sources whose beginning was left out
    quarantined: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    first_problem: str = ""
    runs: list[Path] = field(default_factory=list)


@dataclass(frozen=True)
class MergeJob:
    """The runs of one purpose, to be written as its splits."""

    purpose: str
    runs: list[Path]
    folder: Path
    limits: Prepare


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


def prepare(params: Params, raw: Path, prepared: Path, report_file: Path, workers: int) -> Report:
    """Runs the whole stage; returns what it writes to `report_file`.

    Raises PipelineError where a file cannot be used or a purpose or a split would be empty; nothing is written then.
    """
    with whole_directory(prepared) as folder:
        jobs = list(_file_jobs(params, raw, folder / "runs"))
        bar: tqdm[Any]
        with progress(name="prepare", unit="record") as bar:
            counts = list(ordered_results(clean_file, jobs, min(workers, len(jobs)), bar))
        runs: dict[str, list[Path]] = {purpose: [] for purpose in params.data}
        for job, one in zip(jobs, counts, strict=True):
            runs[job.purpose] += one.runs
        merges = [MergeJob(purpose, paths, folder / purpose, params.prepare) for purpose, paths in runs.items()]
        with progress(name="split and write", unit="record") as bar:
            kept = dict(zip(runs, ordered_results(merge, merges, min(workers, len(merges)), bar), strict=True))
        for purpose, result in kept.items():
            _require_splits(purpose, result, params.prepare)
        _join_quarantine(jobs, folder / "quarantine.jsonl")
        shutil.rmtree(folder / "runs", ignore_errors=True)
        report = _report(jobs, counts, kept)
        with whole_file(report_file) as file:
            file.write_text(json.dumps(report, indent=2) + "\n")
    return report


def _file_jobs(params: Params, raw: Path, runs: Path) -> Iterator[FileJob]:
    for purpose, entries in params.data.items():
        for number, entry in enumerate(entries):
            for order, files in enumerate(entry_files(entry, raw)):
                yield FileJob(purpose, entry, files, runs / f"{purpose}-{number:03d}-{order:06d}", params.prepare)


def clean_file(job: FileJob) -> FileCounts:
    """Reads one raw file, cleans its records and writes them as sorted runs, and what cannot be used as quarantine.

    Raises PipelineError where every record of the file is bad.
    """
    counts = FileCounts()
    file = job.files[0].as_posix()
    runs = Runs(job.folder, columns_of(job.purpose))
    job.folder.mkdir(parents=True)
    with (job.folder / "quarantine.jsonl").open("w", encoding="utf-8") as quarantine:
        for item in READERS[job.entry.reader].read(job.entry, *job.files):
            counts.read += 1
            if isinstance(item, Bad):
                counts.quarantined += 1
                counts.first_problem = counts.first_problem or f"line {item.line}: {item.reason}"
                line = {"file": file, "line": item.line, "reason": item.reason, "purpose": job.purpose}
                quarantine.write(json.dumps(line, ensure_ascii=False) + "\n")
            else:
                _clean_row(item, job, counts, runs.add)
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


def _clean_row(row: Row, job: FileJob, counts: FileCounts, keep: Callable[[tuple[str, ...]], None]) -> None:
    """Cleans one record and passes what is usable of it on. The filters judge what the model is to read."""
    purpose, entry, limits = job.purpose, job.entry, job.limits
    raw, read = [row.values[name] for name in fields_of(purpose)], len(source_side(purpose))
    texts = [normalise(text if READERS[entry.reader].plain else strip_html(text)) for text in raw]
    group = row.values[GROUP] or digest(*texts[:read])
    pieces = [[piece] for piece in cut(texts[0], limits.max_characters)] if purpose == PRETRAINING else [texts]
    counts.cut += len(pieces) - 1
    if purpose != PRETRAINING and TASKS[purpose].keep == "end" and len(texts[0]) > limits.max_characters:
        texts[0] = last_turns(texts[0], limits.max_characters)
        counts.trimmed += 1
    extras = [row.values.get(name, "") for name in _extras_of(purpose)]
    for piece in pieces:
        # What a reader leaves empty is meant; what cleaning emptied held nothing.
        emptied = any(before and not after for before, after in zip(raw, piece, strict=True))
        problem = "empty" if emptied else failed_filter("\n".join(piece[:read]), limits)
        if problem:
            counts.dropped[problem] += 1
        else:
            piece[0] = f"{entry.tag}{piece[0]}"
            keep((digest(*piece[:read]), group, entry.source, *piece, *extras))


def merge(job: MergeJob) -> Kept:
    """Writes one purpose's splits."""
    columns = columns_of(job.purpose)
    kept = write_splits(job.runs, job.folder, columns, job.limits.validation_share, job.limits.test_share)
    count(kept.records.total() + kept.duplicates.total())
    return kept


def _require_splits(purpose: str, kept: Kept, limits: Prepare) -> None:
    """A task is trained, chosen and scored; pre-training is not scored on its test split, which may be empty."""
    needed = SPLITS[:2] if purpose == PRETRAINING else SPLITS
    records = {split: sum(number for (_, of), number in kept.records.items() if of == split) for split in SPLITS}
    if not sum(records.values()):
        raise PipelineError(f"data.{purpose}: no record is left after the filters: look at prepare.min_characters, …")
    for split in needed:
        if not records[split]:
            total = sum(records.values())
            share = "test_share" if split == "test" else "validation_share"
            advice = "add data" if split == "train" else f"add data or raise prepare.{share} ({getattr(limits, share)})"
            raise PipelineError(f"data.{purpose}: none of its {total} records falls in the {split} split: {advice}")


def _join_quarantine(jobs: list[FileJob], path: Path) -> None:
    with path.open("wb") as joined:
        for job in jobs:
            with (job.folder / "quarantine.jsonl").open("rb") as part:
                shutil.copyfileobj(part, joined)


def _report(jobs: list[FileJob], counts: list[FileCounts], kept: dict[str, Kept]) -> Report:
    """Per purpose and source; read + cut = quarantined + dropped + duplicates + kept."""
    sums: dict[tuple[str, str], list[FileCounts]] = defaultdict(list)
    for job, one in zip(jobs, counts, strict=True):
        sums[job.purpose, job.entry.source].append(one)
    report: Report = {}
    for (purpose, source), files in sums.items():
        result = kept[purpose]
        report.setdefault(purpose, {})[source] = {
            "read": sum(one.read for one in files),
            "cut": sum(one.cut for one in files),
            "trimmed": sum(one.trimmed for one in files),
            "quarantined": sum(one.quarantined for one in files),
            "dropped": {name: sum(one.dropped[name] for one in files) for name in FILTERS},
            "duplicates": result.duplicates[source],
            "kept": {split: result.records[source, split] for split in SPLITS},
            "characters": result.characters[source],
        }
    return report


def main(_: argparse.Namespace) -> None:
    """Prepares what params.yaml names."""
    from stages.tracking import stage_run

    params = load_params()
    settings = {"prepare": params.prepare.model_dump(), "data": {k: len(v) for k, v in params.data.items()}}
    with stage_run("prepare", params=settings, inputs=[Path("data/raw")]) as run:
        report = prepare(params, Path("data/raw"), Path("data/prepared"), Path("reports/prepare.json"), cores())
        run.log_metrics(dict(_metrics(report)))
        run.log_artifact(Path("reports/prepare.json"))


def _metrics(report: Report) -> Iterator[tuple[str, float]]:
    for purpose, sources in report.items():
        for source, counts in sources.items():
            for name, value in counts.items():
                parts = value.items() if isinstance(value, dict) else [("", value)]
                for part, number in parts:
                    yield f"{purpose}/{source}/{name}{'/' * bool(part)}{part}", float(number)


if __name__ == "__main__":
    run_stage(main, stage_parser(__doc__))
