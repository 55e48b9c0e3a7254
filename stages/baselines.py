"""What a program that learns nothing answers: the least that a model must do better than.

Reads the test records and, where the length of the answers is to be known, 10,000 targets of the training split.
"""

from collections import Counter
from collections.abc import Sequence
from math import ceil
from pathlib import Path
from statistics import fmean

import pyarrow as pa
import pyarrow.parquet as pq

from lightning_modules.errors import PipelineError
from stages.tasks import Record, Task

_COUNTED = 10_000  # training targets, the first: they are sorted by a hash, so these are a random choice


def baseline(task: Task, records: Sequence[Record], train: Path) -> tuple[str, list[str]]:
    """What it is called in reports, and what it answers to each record.

    "first words" takes as many as the targets of the split `train` have on average, rounded up: where they are short,
    one word less is a much weaker answer. Raises PipelineError where that split cannot be read.
    """
    if task.baseline is None:  # no constant answer is right more often
        commonest = Counter(map(task.target_text, records)).most_common(1)[0][0]
        return task.baseline_name, [commonest] * len(records)
    if task.baseline == "first words":
        count = max(1, ceil(fmean(len(target.split()) for target in _targets(task, train))))
        words = [record[task.fields[0]].split()[:count] for record in records]
        return f"first {count} word{'s' * (count > 1)}", list(map(" ".join, words))
    assert callable(task.baseline)
    return task.baseline_name, list(map(task.baseline, records))


def _targets(task: Task, train: Path) -> list[str]:
    try:
        with pq.ParquetFile(train) as file:
            batch = next(file.iter_batches(_COUNTED, columns=[task.fields[-1]]))
    except (OSError, pa.ArrowException, StopIteration) as error:
        raise PipelineError(f"{train} cannot be read ({error!r}): run the prepare stage again") from error
    targets: list[str] = batch.column(0).to_pylist()
    return targets
