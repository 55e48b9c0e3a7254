"""What is surely better: not what chance alone may give on a handful of test records."""

import pytest
import tiny

from stages.promotion import PYTORCH, Judge, Scored


@pytest.mark.parametrize(("records", "better"), [(1, False), (3, False), (5, False), (6, True), (12, True)])
def test_a_model_that_is_right_on_all_of_few_records_is_not_surely_better(records: int, better: bool) -> None:
    texts = tiny.sentences()[:records]

    def logged(number: str, engine: str) -> Scored:
        assert (number, engine) == ("1", PYTORCH)
        return Scored(texts, list(texts), ["???"] * records)

    def decode(number: str, sources: list[str], engine: str) -> list[str]:
        raise AssertionError("what was logged is enough")

    judge = Judge(Scored(texts, list(texts), texts), "2", "chrf", 1000, 1, PYTORCH, logged, decode)
    verdict = judge("2", "1")
    assert float(verdict.tags["difference_interval"].split()[0]) > 50
    assert (float(verdict.tags["p_value"]) < 0.05, verdict.better) == (better, better)
    assert verdict.reason.startswith("better than" if better else "not surely better than version 1: ")
    assert not judge("1", "2").better
