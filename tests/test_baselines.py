"""What learns nothing: a constant answer, a text that is copied, as many first words as answers have."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lightning_modules.errors import PipelineError
from stages.baselines import baseline
from stages.tasks import TASKS


def write_train(folder: Path, lengths: list[int]) -> Path:
    path = folder / "train.parquet"
    rows = [{"id": str(n), "document": "a b", "summary": " ".join("w" * length)} for n, length in enumerate(lengths)]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize(
    ("lengths", "name", "answers"),
    [
        ([3, 3, 3, 4], "first 4 words", ["one two three four", "short"]),
        ([40] * 3, "first 40 words", ["one two three four five", "short"]),
        ([2, 2], "first 2 words", ["one two", "short"]),
        ([1, 1, 1], "first 1 word", ["one", "short"]),
        ([0, 0], "first 1 word", ["one", "short"]),
    ],
)
def test_a_summary_is_as_many_first_words_as_those_of_the_training_have(
    tmp_path: Path, lengths: list[int], name: str, answers: list[str]
) -> None:
    records = [{"document": text, "summary": "x"} for text in ("one two\nthree  four five", "short")]
    assert baseline(TASKS["summarization"], records, write_train(tmp_path, lengths)) == (name, answers)


def test_a_constant_answer_is_the_commonest_and_a_copy_needs_no_training_data() -> None:
    labels = [{"text": text, "label": label} for text, label in zip("abc", ("no", "yes", "yes"), strict=True)]
    assert baseline(TASKS["classification"], labels, Path("nowhere")) == ("commonest label", ["yes"] * 3)
    pairs = [{"source": "to de: Open", "target": "Öffnen"}]
    assert baseline(TASKS["translation"], pairs, Path("nowhere")) == ("copy the source", ["Open"])


def test_training_data_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "damaged").mkdir()
    damaged = write_train(tmp_path / "damaged", [2])
    damaged.write_bytes(damaged.read_bytes()[:-9])
    for path in (tmp_path / "nowhere/train.parquet", write_train(tmp_path, []), damaged):
        with pytest.raises(PipelineError, match=r"train.parquet cannot be read .*: run the prepare stage again"):
            baseline(TASKS["summarization"], [{"document": "a", "summary": "b"}], path)
