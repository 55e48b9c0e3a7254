"""Which pre-training texts stay, and how often: near-duplicates go, then what holds test records; then weights count.

Works on the splits that prepare wrote, and writes them again: whole texts, in the same order. Nothing is read where
nothing is asked for. Both filters together cost 6 s of processor time for 45 million characters, a tenth of it for
writing; memory grows with the number of texts (stages.near_duplicates, stages.decontamination), by a byte each here.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from lightning_modules.errors import PipelineError
from stages.console import progress
from stages.decontamination import held_records
from stages.near_duplicates import nearest_kept, similarity
from stages.ngrams import Numbers
from stages.overlap import read_rows
from stages.params_schema import Params
from stages.samples import Samples
from stages.splits import ROW_GROUP, SPLITS, digest
from stages.tasks import PRETRAINING

FILTERS = ("near_duplicates", "decontaminate", "weights")  # keys of `prepare`, in the order in which they drop
_STAYS, _NEAR, _HOLDS, _RARE = range(4)  # what becomes of a text; from 1 on which of FILTERS drops it
_BY_RANK = ("test", "validation", "train")  # of two texts that are nearly the same the one of the first of these stays
Fates = npt.NDArray[np.uint8]


@dataclass
class Selected:
    """What became of the pre-training texts, by origin. All of it is empty where nothing was asked for."""

    dropped: dict[str, Counter[str]] = field(default_factory=lambda: {name: Counter() for name in FILTERS})
    repeated: Counter[str] = field(default_factory=Counter)  # copies that weights added
    records: Counter[tuple[str, str]] = field(default_factory=Counter)  # by (origin, split), copies included
    characters: Counter[str] = field(default_factory=Counter)  # likewise, of all splits
    samples: Samples = field(default_factory=Samples)


@dataclass(frozen=True)
class _Pick:
    """A dropped text to be shown."""

    split: str
    row: int
    fate: int
    origin: str
    identity: str
    text: str


def select(folder: Path, params: Params, workers: int) -> Selected:
    """Filters and weights `folder`/pretraining/{train,validation,test}.parquet; the tasks' splits stand beside it.

    A text of a source with weight w stands ⌊w⌋ times in the train split, once more for a share of w - ⌊w⌋ of the texts.
    All texts' second copies stand behind all first ones, so copies are no neighbours. Held-out splits have no weights.
    Raises PipelineError where prepare.weights names an unknown source, or the train or validation split would be empty.
    """
    settings = params.prepare
    require_known_sources(params)
    selected = Selected()
    if not (settings.near_duplicates or settings.decontaminate or settings.weights):
        return selected
    files = {split: folder / PRETRAINING / f"{split}.parquet" for split in SPLITS}
    fates = {split: np.zeros(pq.read_metadata(file).num_rows, np.uint8) for split, file in files.items()}
    places = _places(fates)
    near, held = np.zeros(0, np.int64), None
    if settings.near_duplicates:
        near = nearest_kept([files[split] for split in _BY_RANK], settings.near_duplicates, workers, folder)
        for split, place in places.items():
            fates[split][near[place] >= 0] = _NEAR
    if settings.decontaminate:
        held = held_records(params, folder, workers, folder)
        fates["train"][(held.records_T >= 0) & (fates["train"] == _STAYS)] = _HOLDS
    picks: list[_Pick] = []
    with progress(name="select", unit="text") as bar:
        for split, file in files.items():
            weights = settings.weights if split == "train" else {}
            rewriting = _Rewriting(split, file, fates[split], weights, selected)
            rewriting.write(bar)
            picks += rewriting.picks
    details = _near_details(folder, [pick for pick in picks if pick.fate == _NEAR], near, places)
    for pick in picks:
        if pick.fate == _HOLDS and held:
            details[pick] = held.describe(pick.row)
        elif pick.fate == _RARE:
            details[pick] = f"weight {settings.weights[pick.origin]}"
        of = PRETRAINING, pick.origin, FILTERS[pick.fate - 1]
        selected.samples.add(*of, pick.identity, pick.text, details[pick])
    for split, file in files.items():
        _require_some(selected, split, len(fates[split]))
        _written(file).replace(file)
    return selected


def require_known_sources(params: Params) -> None:
    """Raises PipelineError for a weight of a source that gives no pre-training text."""
    known = list(dict.fromkeys(entry.source for entry in params.data[PRETRAINING]))
    for name in params.prepare.weights:
        if name not in known:
            nearest = get_close_matches(name, known, n=1)
            advice = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(known)}"
            raise PipelineError(f"prepare.weights: {name} is no source of data.{PRETRAINING}; {advice}")


def _places(fates: Mapping[str, Fates]) -> dict[str, slice]:
    """Where each split's texts are among all of them, by rank."""
    ends = np.cumsum([len(fates[split]) for split in _BY_RANK]).tolist()
    return {split: slice(end - len(fates[split]), end) for split, end in zip(_BY_RANK, ends, strict=True)}


def _near_details(folder: Path, picks: list[_Pick], near: Numbers, places: Mapping[str, slice]) -> dict[_Pick, str]:
    """What each text is nearly the same as, in words."""
    stays = {pick: int(near[places[pick.split].start + pick.row]) for pick in picks}
    details = {}
    for split, place in places.items():
        here = {pick: row - place.start for pick, row in stays.items() if place.start <= row < place.stop}
        texts = read_rows(folder, f"{PRETRAINING}/{split}", set(here.values()))
        for pick, row in here.items():
            identity, text = texts[row]
            details[pick] = f"{similarity(pick.text, text):.2f} like {PRETRAINING}/{split} {identity}: {text}"
    return details


def _written(file: Path) -> Path:
    return file.with_suffix(".selected")


def _require_some(selected: Selected, split: str, before: int) -> None:
    left = sum(number for (_, of), number in selected.records.items() if of == split)
    if before and not left and split != "test":
        raise PipelineError(
            f"data.{PRETRAINING}: none of the {before} texts of the {split} split is left: look at "
            f"{', '.join(f'prepare.{name}' for name in FILTERS)}"
        )


class _Rewriting:
    """One split, written again beside its file."""

    def __init__(self, split: str, file: Path, fates: Fates, weights: Mapping[str, float], selected: Selected) -> None:
        self.picks: list[_Pick] = []  # some dropped texts of each origin and filter, the first by id
        self._split, self._file, self._fates, self._weights, self._selected = split, file, fates, weights, selected
        self._shown: Counter[tuple[str, int]] = Counter()

    def write(self, bar: "tqdm[Any]") -> None:
        """Reads the split once for each time that a text may stand."""
        passes = max([1, *(math.ceil(weight) for weight in self._weights.values())])
        with pq.ParquetFile(self._file) as source, _Writer(_written(self._file), source.schema_arrow) as writer:
            for number in range(passes):
                first = 0
                for group in range(source.num_row_groups):
                    table = source.read_row_group(group)
                    fates, times = self._fates[first : first + len(table)], _times(table, self._weights)
                    fates[(times == 0) & (fates == _STAYS)] = _RARE
                    kept = table.filter(pa.array((fates == _STAYS) & (times > number)))
                    if number == 0:
                        self._drop(table, fates, first)
                    self._count(kept, again=number > 0)
                    writer.add(kept)
                    first += len(table)
                    bar.update(len(table))

    def _drop(self, table: pa.Table, fates: Fates, first: int) -> None:
        rows = np.flatnonzero(fates)
        for row, origin in zip(rows.tolist(), table["origin"].take(pa.array(rows)).to_pylist(), strict=True):
            fate = int(fates[row])
            self._selected.dropped[FILTERS[fate - 1]][origin] += 1
            self._shown[origin, fate] += 1
            if self._shown[origin, fate] <= self._selected.samples.most:
                identity, text = table["id"][row].as_py(), table["text"][row].as_py()
                self.picks.append(_Pick(self._split, first + row, fate, origin, identity, text))

    def _count(self, kept: pa.Table, again: bool) -> None:
        lengths = pa.table({"origin": kept["origin"], "length": pc.utf8_length(kept["text"])})
        sums = lengths.group_by("origin").aggregate([("length", "count"), ("length", "sum")])
        for row in sums.to_pylist():
            origin, records = row["origin"], row["length_count"]
            self._selected.records[origin, self._split] += records
            self._selected.characters[origin] += row["length_sum"]
            if again:
                self._selected.repeated[origin] += records


def _times(table: pa.Table, weights: Mapping[str, float]) -> Numbers:
    """How often each text is to stand."""
    times = np.ones(len(table), np.int64)
    if weights:
        for row, (origin, identity) in enumerate(
            zip(*(table[name].to_pylist() for name in ("origin", "id")), strict=True)
        ):
            if origin in weights:
                share, whole = math.modf(weights[origin])
                times[row] = whole + (int(digest("weight", identity), 16) < share * 16**16)
    return times


class _Writer:
    """A parquet file in row groups of ROW_GROUP records, from tables of any size."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")
        self._waiting = schema.empty_table()

    def add(self, table: pa.Table) -> None:
        self._waiting = pa.concat_tables([self._waiting, table])
        whole = len(self._waiting) // ROW_GROUP * ROW_GROUP
        if whole:
            self._writer.write_table(self._waiting[:whole], row_group_size=ROW_GROUP)
            self._waiting = self._waiting[whole:]

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *_: object) -> None:
        if len(self._waiting):
            self._writer.write_table(self._waiting)
        self._writer.close()
