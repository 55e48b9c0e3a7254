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
from pathlib import Path
from typing import Any

import numpy as np

from lightning_modules.errors import PipelineError
from stages.console import run_stage, stage_parser
from stages.held_out import HeldOut, Shares, held_out_sets, read_held_out
from stages.outputs import whole_file
from stages.overlap import First, first_rows, read_rows
from stages.parallel import cores
from stages.params import load_params
from stages.params_schema import Leakage, Params

PREPARED = Path("data/prepared")
REPORT, PAIRS = Path("reports/leakage.json"), Path("reports/leakage.jsonl")
PASSED = Path("reports/leakage.passed")  # always the same bytes: it puts stages in order and makes none run again
MOST_LISTED = 100  # pairs of each test set in reports/leakage.jsonl
_NAMED = 3  # pairs in the error
Pair = dict[str, Any]  # a line of reports/leakage.jsonl


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
    texts = {
        source: read_rows(prepared, source, {row for _, of, row, _ in found if of == source}) for source in first_SP
    }
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
