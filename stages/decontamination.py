"""Which pre-training texts hold what models are scored on: a test record of a task, or a held-out text.

A text holds a record where `leakage.record_share` of the record's word n-grams stand in this one text: what the leakage
stage asks of all training text together (Brown et al. 2020, arXiv:2005.14165, appendix C, drop training text likewise).
Two things are evidence of nothing and left out here: records of fewer than `leakage.ngram` words (a chat with the lines
"hi" and "thanks" was not taken from the test set), and n-grams that they have more than COMMON times (boilerplate).

One core reads some 15 million characters a second. Memory grows with the held-out records (stages.held_out), not with
the texts, of which it keeps 12 bytes each.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from stages.console import progress
from stages.held_out import HeldOut, Shares, held_out_sets, read_held_out
from stages.ngrams import Numbers
from stages.overlap import LookUp, hits, look_ups
from stages.parallel import ordered_results
from stages.params_schema import Params
from stages.tasks import PRETRAINING

COMMON = 1000
_PAIRS = 4_000_000  # of a text's n-gram and a record's, joined at a time: 100 MB
TRAIN = f"{PRETRAINING}/train"


class Held(NamedTuple):
    """T training texts and what each holds."""

    records_T: Numbers  # the number of the record, over all of `tests`, of which most is held; -1: none
    shares_T: npt.NDArray[np.float32]  # of the record's n-grams
    tests: list[HeldOut]

    def describe(self, text: int) -> str:
        """What a text holds, in words."""
        number = int(self.records_T[text])
        for test in self.tests:
            if number < len(test.ids):
                break
            number -= len(test.ids)
        share = f"{self.shares_T[text]:.0%}"
        return f"holds {share} of {test.name} {test.ids[number]}: {test.texts[number]}"


class _Postings(NamedTuple):
    """Which records have each of G n-grams; the E entries of an n-gram stand together."""

    starts_G: Numbers  # one entry more: E
    records_E: Numbers
    counts_R: Numbers  # n-grams of each record


@dataclass(frozen=True)
class _Job:
    """Texts to be looked up, and where the postings are."""

    texts: LookUp
    postings: Path
    record_share: float


def held_records(params: Params, prepared: Path, workers: int, scratch: Path) -> Held:
    """What each text of the pre-training split `train` in `prepared` holds. `scratch`: a folder that all workers see.

    Raises PipelineError where a test split cannot be read.
    """
    settings = params.leakage
    tests = [read_held_out(name, sources, prepared, settings.ngram) for name, sources in held_out_sets(params).items()]
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        index, postings = Path(folder) / "ngrams.npy", Path(folder) / "postings"
        _save_postings(tests, settings.ngram, index, postings)
        jobs = [
            _Job(texts, postings, settings.record_share) for texts in look_ups(TRAIN, prepared, index, settings.ngram)
        ]
        with (
            progress(name="decontaminate", unit="text") as bar,
            closing(ordered_results(_held, jobs, max(1, min(workers, len(jobs))), bar)) as results,
        ):
            parts = list(results)
    records_T, shares_T = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Held(records_T, shares_T, tests)


def _save_postings(tests: Sequence[HeldOut], ngram: int, index: Path, folder: Path) -> None:
    """Writes the sorted hashes of the records' n-grams, and which records have each."""
    firsts = np.cumsum([0, *(len(test.ids) for test in tests)])
    records_P = np.concatenate([test.records_P + first for test, first in zip(tests, firsts[:-1], strict=True)])
    hashes_P = np.concatenate([test.hashes_P for test in tests])
    long_P = np.concatenate([test.words_R for test in tests])[records_P] >= ngram
    records_P, hashes_P = records_P[long_P], hashes_P[long_P]
    _, gram_P, times_G = np.unique(hashes_P, return_inverse=True, return_counts=True)
    rare_P = times_G[gram_P] <= COMMON
    records_P, hashes_P = records_P[rare_P], hashes_P[rare_P]
    order = np.argsort(hashes_P, kind="stable")
    grams_G, starts_G = np.unique(hashes_P[order], return_index=True)
    np.save(index, grams_G)
    folder.mkdir()
    postings = _Postings(
        starts_G=np.append(starts_G, len(order)),
        records_E=records_P[order],
        counts_R=np.bincount(records_P, minlength=firsts[-1]),
    )
    for name, array in postings._asdict().items():
        np.save(folder / f"{name}.npy", array)


@lru_cache(maxsize=1)
def _postings(folder: Path) -> _Postings:
    return _Postings(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in _Postings._fields))


def _held(job: _Job) -> tuple[Numbers, npt.NDArray[np.float32]]:
    """For each text of the row group the record of which it holds most, if enough (or -1), and the share."""
    rows = pq.ParquetFile(job.texts.file).metadata.row_group(job.texts.row_group).num_rows
    records_T, shares_T = np.full(rows, -1, np.int64), np.zeros(rows, np.float32)
    for places, owners in hits(job.texts):
        for texts, records, shares in _shares(places, owners - job.texts.first_row, _postings(job.postings)):
            enough = np.flatnonzero(shares >= job.record_share)
            order = enough[np.lexsort((-records[enough], shares[enough]))]  # of a text's records the last is written
            records_T[texts[order]], shares_T[texts[order]] = records[order], shares[order]
    return records_T, shares_T


def _shares(places: Numbers, owners: Numbers, postings: _Postings) -> Iterator[tuple[Numbers, Numbers, Shares]]:
    """Each text and record that share n-grams, and the share of the record's; some texts at a time."""
    grams, records = len(postings.starts_G), len(postings.counts_R)
    text_P, place_P = np.divmod(np.unique(owners * grams + places), grams)
    sizes_P = postings.starts_G[place_P + 1] - postings.starts_G[place_P]
    before_P = np.cumsum(sizes_P) - sizes_P
    first_T = np.flatnonzero(np.diff(text_P, prepend=-1))
    first_of_part = first_T[np.diff(before_P[first_T] // _PAIRS, prepend=-1) != 0]
    for start, end in pairwise([*first_of_part.tolist(), len(text_P)]):
        part = slice(start, end)
        offsets_P = postings.starts_G[place_P[part]] - before_P[part] + before_P[start]
        entries = np.repeat(offsets_P, sizes_P[part]) + np.arange(sizes_P[part].sum())
        joined = np.repeat(text_P[part], sizes_P[part]) * records + postings.records_E[entries]
        found, counts = np.unique(joined, return_counts=True)
        texts, of_texts = np.divmod(found, records)
        yield texts, of_texts, counts / postings.counts_R[of_texts]
