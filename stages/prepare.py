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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tqdm import tqdm

from lightning_modules.errors import PipelineError
from stages.cleaning import QUARANTINE, FileCounts, FileJob, clean_file, columns_of
from stages.console import progress, run_stage, stage_parser
from stages.languages import check_languages
from stages.outputs import whole_directory, whole_file
from stages.parallel import cores, count, ordered_results
from stages.params import load_params
from stages.params_schema import Params, Prepare
from stages.readers import entry_files
from stages.samples import Samples
from stages.selection import Selected, require_known_sources, select
from stages.splits import SPLITS, Kept, write_splits
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
        workers = min(workers, 1 + sum(path.stat().st_size for job in jobs for path in job.files) // WORTH)
        bar: tqdm[Any]
        with progress(name="prepare", unit="record") as bar:
            counts = list(ordered_results(clean_file, jobs, min(workers, len(jobs)), bar))
        dropped = _dropped(jobs, counts)
        kept = _merge_all(params, jobs, counts, folder, workers)
        for purpose, result in kept.items():
            _require_splits(purpose, result.records, dropped, params.prepare)
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


def _require_splits(
    purpose: str,
    counts: Mapping[tuple[str, str], int],
    dropped: Mapping[tuple[str, str], Counter[str]],
    limits: Prepare,
) -> None:
    """A task is trained, chosen and scored; pre-training is not scored on its test split, which may be empty."""
    needed = SPLITS[:2] if purpose == PRETRAINING else SPLITS
    records = {split: sum(number for (_, of), number in counts.items() if of == split) for split in SPLITS}
    total = sum(records.values())
    if not total:
        by_filter = sum((found for (of, _), found in dropped.items() if of == purpose), Counter[str]())
        told = ", ".join(f"{name} dropped {number:,}" for name, number in by_filter.most_common(3))
        advice = f"{told}: see prepare in params.yaml" if told else "its files hold none"
        raise PipelineError(f"data.{purpose}: no record is left after the filters; {advice}")
    for split in needed:
        if not records[split]:
            share = "test_share" if split == "test" else "validation_share"
            advice = "add data" if split == "train" else f"add data or raise prepare.{share} ({getattr(limits, share)})"
            raise PipelineError(f"data.{purpose}: none of its {total} records falls in the {split} split: {advice}")


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
