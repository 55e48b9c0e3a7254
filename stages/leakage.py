"""How much of what models are scored on stands in what they learn from: reports/leakage.json, reports/leakage.jsonl.

Looked for are the word n-grams of every task's test split, and of the texts held out from pre-training, in all training
text: the pre-training texts and the same task's training and validation splits (after Brown et al. 2020,
arXiv:2005.14165, appendix C). A field of fewer words counts as a whole, where it is a whole line or text there. A
record is leaked where `leakage.record_share` of its n-grams are seen. Where more than `leakage.max_share` of a test set
is leaked, the stage fails and names records, before anything is trained: tokenize needs the file that only success
writes. Costs seconds for 60 million characters; memory grows with the test sets alone.
"""

import argparse
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_modules.errors import PipelineError
from stages.console import run_stage, stage_parser
from stages.ngrams import Hashes, Numbers, ngrams, short_units, words
from stages.outputs import whole_file
from stages.overlap import First, columns_of, first_rows, open_split, portions
from stages.parallel import cores
from stages.params import load_params
from stages.params_data import PRETRAINING
from stages.params_schema import Leakage, Params

PREPARED = Path("data/prepared")
REPORT, PAIRS = Path("reports/leakage.json"), Path("reports/leakage.jsonl")
PASSED = Path("reports/leakage.passed")  # always the same bytes: it puts stages in order and makes none run again
MOST_RECORDS = 50_000  # of a test set, the first by the hash of their content: the share is known to half a percent
MOST_LISTED = 100  # pairs of each test set in reports/leakage.jsonl
_NAMED = 3  # pairs in the error
Shares = npt.NDArray[np.float64]
Pair = dict[str, Any]  # a line of reports/leakage.jsonl


@dataclass(frozen=True)
class HeldOut:
    """Records and their n-grams: R records, P n-grams in all."""

    name: str  # PURPOSE/SPLIT
    sources: tuple[str, ...]  # PURPOSE/SPLIT of the training texts that must not hold them
    ids: list[str]
    texts: list[str]
    hashes_P: Hashes
    records_P: Numbers  # the number of the record

    def shares(self, seen_P: npt.NDArray[np.bool_]) -> Shares:
        """The share of each record's n-grams that are seen (R,); 0 for a record without words."""
        counts_R = np.bincount(self.records_P, minlength=len(self.ids))
        return np.bincount(self.records_P, weights=seen_P, minlength=len(self.ids)) / np.maximum(counts_R, 1)


def measure(params: Params, prepared: Path, workers: int) -> tuple[dict[str, Any], dict[str, list[Pair]]]:
    """The numbers of reports/leakage.json and, for each test set, its most leaked pairs, at most MOST_LISTED.

    Raises PipelineError where data/prepared is not whole.
    """
    settings = params.leakage
    tests = [read_held_out(name, sources, prepared, settings.ngram) for name, sources in held_out_sets(params).items()]
    grams_G = np.unique(np.concatenate([test.hashes_P for test in tests]))
    needed = list(dict.fromkeys(source for test in tests for source in test.sources))
    firsts = first_rows(grams_G, prepared, needed, settings.ngram, workers)
    report: dict[str, Any] = {}
    pairs: dict[str, list[Pair]] = {}
    for test in tests:
        place_P = np.searchsorted(grams_G, test.hashes_P)
        first_SP = {source: firsts[source][place_P] for source in test.sources}
        shares_R = test.shares(np.logical_or.reduce([first_P > 0 for first_P in first_SP.values()]))
        by_source = {source: _leaked(test.shares(first_P > 0), settings) for source, first_P in first_SP.items()}
        report[test.name] = _numbers(shares_R, settings) | {"share_by_source": by_source}
        pairs[test.name] = _pairs(test, shares_R, first_SP, prepared, settings.record_share)
    return report, pairs


def held_out_sets(params: Params) -> dict[str, tuple[str, ...]]:
    """What models are scored or chosen on, and the training texts that must not hold it, as PURPOSE/SPLIT."""
    learnt = f"{PRETRAINING}/train"
    tasks = {f"{task}/test": (learnt, f"{task}/train", f"{task}/validation") for task in params.tasks}
    return tasks | {f"{PRETRAINING}/{split}": (learnt,) for split in ("validation", "test")}


def read_held_out(name: str, sources: tuple[str, ...], prepared: Path, ngram: int) -> HeldOut:
    """The first MOST_RECORDS records and the hashes of their n-grams."""
    columns, ids, texts = columns_of(name), list[str](), list[str]()
    hashes, records = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    for batch in open_split(prepared, name).iter_batches(batch_size=1000, columns=["id", *columns]):
        rows = batch.to_pylist()[: MOST_RECORDS - len(ids)]
        fields = [" ".join(row[column].split()) for row in rows for column in columns]
        for first, portion in portions(fields):
            found = words(portion)
            for hashes_P, owners_P in (ngrams(found, ngram), short_units(found, found.texts_T, ngram)):
                hashes.append(hashes_P)
                records.append((owners_P + first) // len(columns) + len(ids))
        ids += [row["id"] for row in rows]
        texts += ["\n".join(row[column] for column in columns) for row in rows]
        if len(ids) == MOST_RECORDS:
            break
    return HeldOut(name, sources, ids, texts, np.concatenate(hashes), np.concatenate(records))


def _leaked(shares_R: Shares, settings: Leakage) -> float:
    return round(float(np.mean(shares_R >= settings.record_share)), 6) if len(shares_R) else 0.0


def _numbers(shares_R: Shares, settings: Leakage) -> dict[str, Any]:
    histogram, _ = np.histogram(shares_R, bins=10, range=(0, 1))
    return {
        "records": len(shares_R),
        "leaked": int(np.sum(shares_R >= settings.record_share)),
        "share": _leaked(shares_R, settings),
        "histogram": histogram.tolist(),  # records by the share of their n-grams that is seen: 0–0.1, 0.1–0.2 …
    }


def _pairs(
    test: HeldOut, shares_R: Shares, first_SP: Mapping[str, First], prepared: Path, record_share: float
) -> list[Pair]:
    """The most leaked records; each with the training record that most of its n-grams stand in, of those that stand
    first."""
    order = np.argsort(-shares_R, kind="stable")[:MOST_LISTED]
    found = []
    for record in order[shares_R[order] >= record_share].tolist():
        mine_P = np.flatnonzero(test.records_P == record)
        holders = Counter((source, int(row)) for source, first_P in first_SP.items() for row in first_P[mine_P] if row)
        (source, row), held = holders.most_common(1)[0]
        found.append((record, source, row - 1, held / len(mine_P)))
    texts = {source: _rows(prepared, source, {row for _, of, row, _ in found if of == source}) for source in first_SP}
    return [
        {
            "test_set": test.name,
            "id": test.ids[record],
            "seen": round(float(shares_R[record]), 4),
            "training": source,
            "training_id": texts[source][row][0],
            "seen_there": round(share, 4),
            "text": test.texts[record],
            "training_text": texts[source][row][1],
        }
        for record, source, row, share in found
    ]


def _rows(prepared: Path, source: str, wanted: set[int]) -> dict[int, tuple[str, str]]:
    """Id and text of some training records, by the number of their row."""
    file, columns, first, found = open_split(prepared, source), columns_of(source), 0, dict[int, tuple[str, str]]()
    for number in range(file.num_row_groups):
        size = file.metadata.row_group(number).num_rows
        here = sorted(row for row in wanted if first <= row < first + size)
        if here:
            table = file.read_row_group(number, columns=["id", *columns]).take([row - first for row in here])
            for row, values in zip(here, table.to_pylist(), strict=True):
                found[row] = values["id"], "\n".join(values[column] for column in columns)
        first += size
    return found


def require_clean(report: Mapping[str, Any], pairs: Mapping[str, list[Pair]], most: float) -> None:
    """Raises PipelineError, with the worst pairs, where more than a share of `most` of a test set is leaked."""
    for name, numbers in report.items():
        if numbers["share"] > most:
            worst = [f"{p['id']} ({p['seen']:.0%}; {p['training']} {p['training_id']})" for p in pairs[name][:_NAMED]]
            raise PipelineError(
                f"{PREPARED}/{name}.parquet: {numbers['leaked']} of {numbers['records']} records "
                f"({numbers['share']:.1%}) stand in training text, more than leakage.max_share ({most}): "
                f"{', '.join(worst)}; more in {PAIRS}: give related records one group, remove them, or raise max_share"
            )


def main(_: argparse.Namespace) -> None:
    """Measures, writes what was found, and only then fails where it is too much."""
    from stages.tracking import stage_run

    params = load_params()
    PASSED.unlink(missing_ok=True)
    with stage_run("leakage", params={"leakage": params.leakage.model_dump()}, inputs=[PREPARED]) as run:
        report, pairs = measure(params, PREPARED, cores())
        with whole_file(REPORT) as file:
            file.write_text(json.dumps(report, indent=2) + "\n")
        with whole_file(PAIRS) as file:
            lines = [json.dumps(pair, ensure_ascii=False) for found in pairs.values() for pair in found]
            file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        run.log_metrics({f"{name}/leaked_share": numbers["share"] for name, numbers in report.items()})
        run.log_artifact(REPORT)
        run.log_artifact(PAIRS)
        for name, numbers in report.items():
            print(f"{name}: {numbers['leaked']} of {numbers['records']} records leaked ({numbers['share']:.2%})")
        require_clean(report, pairs, params.leakage.max_share)
        with whole_file(PASSED) as file:
            file.write_text("no test set stands in training text\n")


if __name__ == "__main__":
    run_stage(main, stage_parser(__doc__))
