"""Clean, filter, deduplicate and split the texts of every purpose: data/raw → data/prepared, reports/prepare.json.

In this order: each raw file cleaned (`stages.cleaning`); exact duplicates dropped; split by the hash of the group;
pre-training texts selected (`stages.selection`: near-duplicates, texts that hold test records, weights). Records that
cannot be read go to data/prepared/quarantine.jsonl, samples of what was dropped to reports/dropped.jsonl. Up to one
process a core, one raw file a job; each process takes up to 0.4 GB, however much the data.
"""

import argparse
import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, cast

import pyarrow.parquet as pq
from tqdm import tqdm

from lightning_modules.errors import PipelineError
from stages.cleaning import QUARANTINE, FileCounts, FileJob, clean_file, columns_of
from stages.console import progress, run_stage, stage_parser
from stages.languages import check_languages
from stages.outputs import whole_directory, whole_file
from stages.parallel import cores, count, ordered_results
from stages.params import load_params
from stages.params_data import Entry, TextFiles
from stages.params_schema import Params, Prepare
from stages.raw_files import TEXT_FORMATS, format_of, returns_alone
from stages.readers import entry_files, tell_unread
from stages.samples import Largest, Samples
from stages.selection import Selected, require_known_sources, select
from stages.splits import SPLITS, Kept, split_of, write_splits
from stages.tasks import PRETRAINING
from stages.text import FILTERS

Report = dict[str, dict[str, dict[str, int | dict[str, int]]]]  # purpose → source → counts
WORTH = 1 << 22  # bytes of raw files that a further worker is for: what takes as long as its start, and longer
DROPPED = "dropped.jsonl"  # beside the report


@dataclass(frozen=True)
class MergeJob:
    """The runs of one purpose, to be written as its splits."""

    purpose: str
    runs: list[Path]
    folder: Path
    limits: Prepare


def prepare(params: Params, raw: Path, prepared: Path, report_file: Path, workers: int) -> Report:
    """Runs the whole stage; returns what it writes to `report_file`. Samples of what was dropped go beside it.

    Raises PipelineError where a file cannot be used or a purpose or a split would be empty; nothing is written then.
    """
    check_languages(params.prepare.languages)
    if PRETRAINING in params.data:
        require_known_sources(params)
    with whole_directory(prepared) as folder:
        jobs = list(_file_jobs(params, raw, folder / "runs"))
        tell_unread(chain.from_iterable(params.data.values()), raw)
        workers = min(workers, 1 + sum(path.stat().st_size for job in jobs for path in job.files) // WORTH)
        bar: tqdm[Any]
        with progress(name="prepare", unit="record") as bar:
            counts = list(ordered_results(clean_file, jobs, min(workers, len(jobs)), bar))
        dropped = _dropped(jobs, counts)
        kept = _merge_all(params, jobs, counts, folder, workers)
        for purpose, result in kept.items():
            _require_records(purpose, result.records, dropped)
            _require_splits(purpose, result.records, folder / purpose, [job for job in jobs if job.purpose == purpose])
        _tell_largest(jobs, counts)
        _join_quarantine(jobs, folder / QUARANTINE)
        shutil.rmtree(folder / "runs", ignore_errors=True)
        selected = select(folder, params, workers) if PRETRAINING in params.data else Selected()
        report = _with_selected(_report(jobs, counts, kept, dropped), selected)
        samples = selected.samples
        for one in counts:
            samples.merge(one.samples)
        _write(report, samples, report_file)
    return report


def _file_jobs(params: Params, raw: Path, runs: Path) -> Iterator[FileJob]:
    for purpose, entries in params.data.items():
        for number, entry in enumerate(entries):
            for order, files in enumerate(entry_files(entry, raw)):
                yield FileJob(purpose, entry, files, runs / f"{purpose}-{number:03d}-{order:06d}", params.prepare)


def _merge_all(
    params: Params, jobs: list[FileJob], counts: list[FileCounts], folder: Path, workers: int
) -> dict[str, Kept]:
    runs: dict[str, list[Path]] = {purpose: [] for purpose in params.data}
    for job, one in zip(jobs, counts, strict=True):
        runs[job.purpose] += one.runs
    merges = [MergeJob(purpose, paths, folder / purpose, params.prepare) for purpose, paths in runs.items()]
    bar: tqdm[Any]
    with progress(name="split and write", unit="record") as bar:
        return dict(zip(runs, ordered_results(merge, merges, min(workers, len(merges)), bar), strict=True))


def merge(job: MergeJob) -> Kept:
    """Writes one purpose's splits. A second call does the same again."""
    shutil.rmtree(job.folder, ignore_errors=True)
    kept = write_splits(
        job.runs, job.folder, columns_of(job.purpose), job.limits.validation_share, job.limits.test_share
    )
    count(kept.records.total() + kept.duplicates.total())
    return kept


def _dropped(jobs: list[FileJob], counts: list[FileCounts]) -> dict[tuple[str, str], Counter[str]]:
    """(purpose, source) → how many each filter dropped."""
    dropped: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for job, one in zip(jobs, counts, strict=True):
        dropped[job.purpose, job.entry.source] += one.dropped
    return dropped


def _require_records(
    purpose: str, counts: Mapping[tuple[str, str], int], dropped: Mapping[tuple[str, str], Counter[str]]
) -> None:
    if not sum(counts.values()):
        by_filter = sum((found for (of, _), found in dropped.items() if of == purpose), Counter[str]())
        told = ", ".join(f"{name} dropped {number:,}" for name, number in by_filter.most_common(3))
        advice = f"{told}: see prepare in params.yaml" if told else "its files hold none"
        raise PipelineError(f"data.{purpose}: no record is left after the filters; {advice}")


def _require_splits(purpose: str, counts: Mapping[tuple[str, str], int], folder: Path, jobs: Sequence[FileJob]) -> None:
    """A task is trained, chosen and scored; pre-training is not scored on its test split, which may be empty.

    `jobs` are those of the purpose, `folder` has what came of them. A larger share helps only where groups suffice.
    """
    needed = SPLITS[:2] if purpose == PRETRAINING else SPLITS
    filled = {split for (_, split), number in counts.items() if number}
    empty = next((split for split in needed if split not in filled), None)
    if empty is None:
        return
    columns = [pq.read_table(folder / f"{split}.parquet", columns=["group"])["group"] for split in SPLITS]
    total, groups = sum(counts.values()), len({group for column in columns for group in column.to_pylist()})
    ways = _ways(job.entry for job in jobs)
    if empty != "train" and groups >= len(needed):
        share = "test_share" if empty == "test" else "validation_share"
        ways += f" or raise prepare.{share} ({getattr(jobs[0].limits, share)})"
    if groups < total:
        ways = f"they are of {groups} document{'s' * (groups > 1)}, and a document stays whole in one split: {ways}"
    texts = (file for job in jobs for file in job.files if format_of(file) in TEXT_FORMATS)
    advice = next(filter(None, map(returns_alone, texts)), ways)
    raise PipelineError(f"data.{purpose}: none of its {total} records falls in the {empty} split: {advice}")


def _ways(entries: Iterable[Entry]) -> str:
    """How the texts become more groups, and smaller ones."""
    splits = {entry.split for entry in entries if isinstance(entry, TextFiles)}
    finer = "paragraph or line" if "file" in splits else "line" if "paragraph" in splits else ""
    return f"use split: {finer}, or add data" if finer else "add data"


def _tell_largest(jobs: Sequence[FileJob], counts: Sequence[FileCounts]) -> None:
    """Prints a line for each source most of whose text is surely of one group: all of that is in one split."""
    found: dict[tuple[str, str], Largest] = defaultdict(Largest)
    entries: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for job, one in zip(jobs, counts, strict=True):
        found[job.purpose, job.entry.source].merge(one.largest)
        entries[job.purpose, job.entry.source].append(job.entry)
    for (purpose, source), largest in found.items():
        if 2 * largest.sure <= largest.whole:
            continue
        readers, limits = entries[purpose, source], jobs[0].limits
        text = any(isinstance(entry, TextFiles) for entry in readers)
        named = f"document, in {largest.file}" if text else f"group, {largest.group}"
        split = split_of(largest.group, limits.validation_share, limits.test_share)
        part = "all" if largest.sure == largest.whole else f"at least {100 * largest.sure // largest.whole}%"
        advice = (returns_alone(Path(largest.file)) if text else "") or _ways(readers)
        told = f"{part} of source {source} is one {named}, kept whole in the {split} split"
        print(f"data.{purpose}: {told}: {advice}", flush=True)


def _join_quarantine(jobs: list[FileJob], path: Path) -> None:
    with path.open("wb") as joined:
        for job in jobs:
            with (job.folder / QUARANTINE).open("rb") as part:
                shutil.copyfileobj(part, joined)


def _report(
    jobs: list[FileJob],
    counts: list[FileCounts],
    kept: dict[str, Kept],
    dropped: Mapping[tuple[str, str], Counter[str]],
) -> Report:
    """Per purpose and source; read + cut + repeated = quarantined + dropped + duplicates + kept."""
    sums: dict[tuple[str, str], list[FileCounts]] = defaultdict(list)
    for job, one in zip(jobs, counts, strict=True):
        sums[job.purpose, job.entry.source].append(one)
    report: Report = {}
    for (purpose, source), files in sums.items():
        result, by_filter = kept[purpose], dropped[purpose, source]
        report.setdefault(purpose, {})[source] = {
            "read": sum(one.read for one in files),
            "cut": sum(one.cut for one in files),
            "repeated": 0,
            "trimmed": sum(one.trimmed for one in files),
            "quarantined": sum(one.quarantined for one in files),
            "dropped": {name: by_filter[name] for name in FILTERS} | dict(sorted(by_filter.items())),
            "lines_removed": dict(sorted(sum((one.lines_removed for one in files), Counter[str]()).items())),
            "masked": dict(sorted(sum((one.masked for one in files), Counter[str]()).items())),
            "duplicates": result.duplicates[source],
            "kept": {split: result.records[source, split] for split in SPLITS},
            "characters": result.characters[source],
        }
    return report


def _with_selected(report: Report, selected: Selected) -> Report:
    """What was selected takes the place of what was written first, where anything was selected."""
    for source, counts in report[PRETRAINING].items() if selected.records else ():
        dropped = {name: of[source] for name, of in selected.dropped.items() if of[source]}
        counts["dropped"] = {**cast(dict[str, int], counts["dropped"]), **dropped}
        counts["repeated"] = selected.repeated[source]
        counts["kept"] = {split: selected.records[source, split] for split in SPLITS}
        counts["characters"] = selected.characters[source]
    return report


def _write(report: Report, samples: Samples, report_file: Path) -> None:
    with whole_file(report_file) as file:
        file.write_text(json.dumps(report, indent=2) + "\n")
    with whole_file(report_file.with_name(DROPPED)) as file:
        lines = (json.dumps(line, ensure_ascii=False) + "\n" for line in samples.lines())
        file.write_text("".join(lines), encoding="utf-8")


def main(_: argparse.Namespace) -> None:
    """Prepares what params.yaml names."""
    from stages.tracking import stage_run

    params = load_params()
    settings = {"prepare": params.prepare.model_dump(), "data": {k: len(v) for k, v in params.data.items()}}
    with stage_run("prepare", params=settings, inputs=[Path("data/raw")]) as run:
        report = prepare(params, Path("data/raw"), Path("data/prepared"), Path("reports/prepare.json"), cores())
        run.log_metrics(dict(_metrics(report)))
        run.log_artifact(Path("reports/prepare.json"))
        run.log_artifact(Path("reports") / DROPPED)


def _metrics(report: Report) -> Iterator[tuple[str, float]]:
    for purpose, sources in report.items():
        for source, counts in sources.items():
            for name, value in counts.items():
                parts = value.items() if isinstance(value, dict) else [("", value)]
                for part, number in parts:
                    yield f"{purpose}/{source}/{name}{'/' * bool(part)}{part}", float(number)


if __name__ == "__main__":
    run_stage(main, stage_parser(__doc__))
