"""What models are scored on, and all text held out from pre-training, as word n-grams: what must not be learnt from.

Reading costs about 0.3 s for 10,000 records of 600 characters; memory grows with the records, at most MOST_RECORDS of a
set: some 16 bytes a word.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stages.ngrams import Hashes, Numbers, ngrams, short_units, words
from stages.overlap import columns_of, compared, open_split, portions
from stages.params_schema import Params
from stages.tasks import PRETRAINING

MOST_RECORDS = 50_000  # of a test set, the first by the hash of their content: the share is known to half a percent
Shares = npt.NDArray[np.float64]


@dataclass(frozen=True)
class HeldOut:
    """Records and their n-grams: R records, P n-grams in all."""

    name: str  # PURPOSE/SPLIT
    sources: tuple[str, ...]  # PURPOSE/SPLIT of the training texts that must not hold them
    ids: list[str]
    texts: list[str]
    words_R: Numbers
    hashes_P: Hashes
    records_P: Numbers  # the number of the record

    def shares(self, seen_P: npt.NDArray[np.bool_]) -> Shares:
        """The share of each record's n-grams that are seen (R,); 0 for a record without words."""
        counts_R = np.bincount(self.records_P, minlength=len(self.ids))
        return np.bincount(self.records_P, weights=seen_P, minlength=len(self.ids)) / np.maximum(counts_R, 1)


def held_out_sets(params: Params) -> dict[str, tuple[str, ...]]:
    """The test splits and pre-training's validation split, and the texts that must not hold each, as PURPOSE/SPLIT."""
    learnt = f"{PRETRAINING}/train"
    tasks = {f"{task}/test": (learnt, f"{task}/train", f"{task}/validation") for task in params.tasks}
    return tasks | {f"{PRETRAINING}/{split}": (learnt,) for split in ("validation", "test")}


def read_held_out(name: str, sources: tuple[str, ...], prepared: Path, ngram: int) -> HeldOut:
    """The first MOST_RECORDS records and the hashes of their n-grams; a field of fewer words counts as a whole."""
    columns, ids, texts = columns_of(name), list[str](), list[str]()
    hashes, records = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    counts = [np.zeros(0, np.int64)]
    for batch in open_split(prepared, name).iter_batches(batch_size=1000, columns=["id", *columns]):
        rows = batch.to_pylist()[: MOST_RECORDS - len(ids)]
        texts_of_rows = compared(columns, ([row[column] for column in columns] for row in rows))
        fields = [" ".join(text.split()) for text in texts_of_rows]
        for first, portion in portions(fields):
            found = words(portion)
            counts.append(np.diff(found.texts_T))
            for hashes_P, owners_P in (ngrams(found, ngram), short_units(found, found.texts_T, ngram)):
                hashes.append(hashes_P)
                records.append((owners_P + first) // len(columns) + len(ids))
        ids += [row["id"] for row in rows]
        texts += ["\n".join(row[column] for column in columns) for row in rows]
        if len(ids) == MOST_RECORDS:
            break
    words_R = np.concatenate(counts).reshape(-1, len(columns)).sum(axis=1)
    return HeldOut(name, sources, ids, texts, words_R, np.concatenate(hashes), np.concatenate(records))
