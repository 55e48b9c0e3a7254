"""Which pre-training texts are nearly another one: MinHash, found by locality-sensitive hashing.

Two texts' similarity is the Jaccard similarity of their sets of word 5-grams; the set of a shorter text is the whole
text. A text's signature holds the smallest value of each of HASHES functions over its set: the share of values that two
signatures have in common is as large as their texts are similar, give or take 0.035 (Broder 1997). Signatures are cut
into bands; only texts that agree in a whole band are compared (Lee et al. 2022, arXiv:2107.06499, section 4.2), by
their whole signatures.

Signing costs 0.05 µs a character, comparing some 5 µs a text. A text takes 512 bytes on disk and 8 for each band, some
60 in a worker, 8 here and 16 for each pair that is similar, however long it is.
"""

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from stages.console import progress
from stages.ngrams import Hashes, Numbers, ngrams, short_units, words
from stages.overlap import portions
from stages.parallel import count, ordered_results
from stages.splits import digest

HASHES = 128
WORDS = 5  # of an n-gram: Lee et al.'s choice
RECALL = 0.99  # of pairs as similar as the threshold, how many at least share a band
ROUNDS = 64  # of comparing a band's texts, before the next band must agree as well
WORTH = 200_000  # texts: what one process compares in the time that another takes to start
_PAIRS = 65_536  # compared at a time: 64 MB of signatures
_MOST_TEXTS = 2**32
Signatures = npt.NDArray[np.uint32]  # (T, HASHES)
# value · factor + term modulo 2³² is a permutation where the factor is odd.
_FUNCTIONS = np.random.default_rng(1).integers(0, 2**32, (HASHES, 2), dtype=np.uint32) | np.array([1, 0], np.uint32)


@dataclass(frozen=True)
class _Group:
    """The texts of a row group, to be signed."""

    file: Path
    row_group: int
    rows: int  # values in a band


@dataclass(frozen=True)
class _Band:
    """The texts that share a value of one band, to be compared."""

    keys: list[Path]  # of this band, then the others
    signatures: Path
    equal: int  # hashes, at least, that similar texts have in common


def nearest_kept(files: Sequence[Path], threshold: float, workers: int, scratch: Path) -> Numbers:
    """For each text of all files the earlier text that stays in its stead, as its number over all files; -1: it stays.

    Each text in turn goes where it is similar to one that stays. So of those that stay no two are similar, but for what
    MinHash misses, and each that goes is: in a chain of texts, each similar to the next, the first and the third may
    stay. `scratch`: a folder that all workers see.
    """
    rows = rows_of_band(threshold)
    jobs = [_Group(file, group, rows) for file in files for group in range(pq.read_metadata(file).num_row_groups)]
    texts, pairs = sum(pq.read_metadata(file).num_rows for file in files), np.zeros(0, np.uint64)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        signatures, keys = _write_signatures(jobs, Path(folder), workers)
        equal = int(np.ceil(threshold * HASHES - 1e-9))
        bands = [_Band([*keys[band:], *keys[:band]], signatures, equal) for band in range(len(keys))]
        with (
            progress(name="near-duplicates: compare", unit="band", total=len(bands)) as bar,
            closing(ordered_results(_similar, bands, min(workers, len(bands), 1 + texts // WORTH), bar)) as results,
        ):
            for found in results:
                pairs = np.union1d(pairs, found)
    kept_N = np.full(texts, -1, np.int64)
    for pair in pairs:
        late, early = divmod(int(pair), _MOST_TEXTS)
        if kept_N[early] < 0 and kept_N[late] < 0:
            kept_N[late] = early
    return kept_N


def rows_of_band(threshold: float) -> int:
    """As many hashes in a band as leave RECALL to pairs as similar as `threshold`: the more, the fewer are compared.

    A pair of similarity s shares one of b bands of r rows with a probability of 1 - (1 - sʳ)ᵇ.
    """
    fitting = [r for r in range(1, HASHES + 1) if 1 - (1 - threshold**r) ** (HASHES // r) >= RECALL]
    return max(fitting, default=1)


def similarity(one: str, other: str) -> float:
    """The Jaccard similarity of two texts' sets of n-grams."""
    found = words([one, other])
    pieces = [ngrams(found, WORDS), short_units(found, found.texts_T, WORDS)]
    sets = [set(np.concatenate([hashes[texts == text] for hashes, texts in pieces]).tolist()) for text in (0, 1)]
    return len(sets[0] & sets[1]) / max(1, len(sets[0] | sets[1]))


def _write_signatures(jobs: list[_Group], folder: Path, workers: int) -> tuple[Path, list[Path]]:
    """Writes all texts' signatures to one file, and each band's keys to one."""
    signatures, keys = folder / "signatures", [folder / f"band{number}" for number in range(HASHES // jobs[0].rows)]
    with (
        ExitStack() as files,
        progress(name="near-duplicates: sign", unit="text") as bar,
        closing(ordered_results(_sign, jobs, min(workers, len(jobs)), bar)) as results,
    ):
        file, *of_bands = [files.enter_context(path.open("wb")) for path in (signatures, *keys)]
        for signatures_TH, keys_BT in results:
            signatures_TH.tofile(file)
            for of_band, keys_T in zip(of_bands, keys_BT, strict=True):
                keys_T.tofile(of_band)
    return signatures, keys


def _sign(job: _Group) -> tuple[Signatures, Hashes]:
    """Signatures (T, HASHES) and bands' keys (B, T)."""
    table = pq.ParquetFile(job.file).read_row_group(job.row_group, columns=["id", "text"])
    ids, parts = table["id"].to_pylist(), [np.zeros((0, HASHES), np.uint32)]
    for first, texts in portions(table["text"].to_pylist()):
        parts.append(sign(texts, ids[first:]))
        count(len(texts))
    signatures_TH = np.concatenate(parts)
    bands = HASHES // job.rows
    bands_TBR = signatures_TH[:, : bands * job.rows].reshape(-1, bands, job.rows)
    factors_R = np.random.default_rng(0).integers(0, 2**64, job.rows, dtype=np.uint64) | np.uint64(1)
    return signatures_TH, np.ascontiguousarray((bands_TBR * factors_R).sum(axis=2).T)


def sign(texts: Sequence[str], ids: Sequence[str]) -> Signatures:
    """The texts' signatures. A text without words is like no other: its set is its id."""
    found = words(texts)
    pieces = [ngrams(found, WORDS), short_units(found, found.texts_T, WORDS)]
    empty = np.flatnonzero(np.diff(found.texts_T) == 0)
    pieces.append((np.array([int(digest(ids[text]), 16) for text in empty.tolist()], np.uint64), empty))
    hashes, owners = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
    order = np.argsort(owners, kind="stable")
    values = (hashes[order] >> np.uint64(32)).astype(np.uint32)
    starts_T = np.flatnonzero(np.diff(owners[order], prepend=-1))
    signatures_HT = np.empty((HASHES, len(texts)), np.uint32)
    for number, (factor, term) in enumerate(_FUNCTIONS):
        np.minimum.reduceat(values * factor + term, starts_T, out=signatures_HT[number])
    return np.ascontiguousarray(signatures_HT.T)


def _similar(job: _Band) -> Hashes:
    """Similar pairs of the texts with one value of the first band, as later · 2³² + earlier.

    In each round the first text of a group is compared with the others, and those unlike it remain. What remains after
    ROUNDS, of many texts with the same frame around different contents, is grouped by the next band, too: without that,
    they would all be compared with one another.
    """
    signatures_NH = np.memmap(job.signatures, np.uint32, "r").reshape(-1, HASHES)
    order = np.arange(len(signatures_NH))
    group, found = np.zeros_like(order), [np.zeros(0, np.uint64)]
    for path in job.keys:
        keys = np.fromfile(path, np.uint64)[order]
        sorting = np.lexsort((keys, group))  # stable: texts of a group stay in order
        keys, group, order = keys[sorting], group[sorting], order[sorting]
        group = np.cumsum((np.diff(keys, prepend=keys[:1]) != 0) | (np.diff(group, prepend=group[:1]) != 0))
        for _ in range(ROUNDS):
            first = np.diff(group, prepend=-1) != 0
            late, early = order[~first], order[first][np.cumsum(first) - 1][~first]
            near = _equal(signatures_NH, late, early) >= job.equal
            found.append(late[near].astype(np.uint64) * np.uint64(_MOST_TEXTS) + early[near].astype(np.uint64))
            order, group = late[~near], group[~first][~near]
            if not len(order):
                count(1)
                return np.concatenate(found)
    count(1)
    return np.concatenate(found)


def _equal(signatures_NH: Signatures, late: Numbers, early: Numbers) -> Numbers:
    """How many values of their signatures the texts of each pair have in common."""
    equal = np.zeros(len(late), np.int64)
    for start in range(0, len(late), _PAIRS):
        part = slice(start, start + _PAIRS)
        equal[part] = (signatures_NH[late[part]] == signatures_NH[early[part]]).sum(axis=1)
    return equal
