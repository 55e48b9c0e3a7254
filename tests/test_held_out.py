"""What models are scored on, as n-grams: which splits, how many records, how many words, what share of them is seen."""

from pathlib import Path

import numpy as np
import pytest
from prepared_texts import write

from stages import held_out
from stages.held_out import held_out_sets, read_held_out
from stages.params import load_params

PAIRS = [("Open the old door now", "Tür öffnen"), ("...", ""), ("one two three", "one two three"), ("go", "los!")]


def test_each_test_split_is_kept_from_what_is_learnt_for_it() -> None:
    params = load_params(Path(__file__).with_name("params.yaml"))
    sets = held_out_sets(params)
    assert set(sets) == {f"{task}/test" for task in params.tasks} | {"pretraining/validation", "pretraining/test"}
    for name, sources in sets.items():
        assert "pretraining/train" in sources
        purpose = name.split("/")[0]
        assert purpose == "pretraining" or {f"{purpose}/train", f"{purpose}/validation"} < set(sources)
        assert name not in sources


def test_records_words_and_shares(tmp_path: Path) -> None:
    write(tmp_path, "translation", "test", PAIRS)
    found = read_held_out("translation/test", (), tmp_path, ngram=3)
    assert found.ids == [f"translation-test-{number}" for number in range(4)]
    assert found.texts == ["\n".join(pair) for pair in PAIRS]
    assert found.words_R.tolist() == [7, 0, 6, 2]
    assert np.bincount(found.records_P, minlength=4).tolist() == [3 + 1, 0, 1 + 1, 1 + 1]  # short fields are one each
    of_third = found.hashes_P[found.records_P == 2]
    assert of_third[0] == of_third[1]
    assert found.shares(np.isin(found.hashes_P, of_third)).tolist() == [0, 0, 1, 0]
    first = found.records_P == 0
    assert found.shares(first & (np.cumsum(first) <= 3)).tolist() == [0.75, 0, 0, 0]


@pytest.mark.parametrize("most", [1, 3, 4, 9])
def test_only_the_first_records_are_read(tmp_path: Path, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "translation", "test", PAIRS)
    whole = read_held_out("translation/test", (), tmp_path, ngram=3)
    monkeypatch.setattr(held_out, "MOST_RECORDS", most)
    found = read_held_out("translation/test", (), tmp_path, ngram=3)
    assert found.ids == whole.ids[:most]
    assert found.words_R.tolist() == whole.words_R[:most].tolist()
    assert sorted(found.hashes_P.tolist()) == sorted(whole.hashes_P[whole.records_P < most].tolist())
