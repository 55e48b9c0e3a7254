"""The table of scores: every metric and system, differences, groups, single records; wrong inputs in one line."""

from typing import Any

import pytest
from test_metrics import corpus, score

from lightning_modules.errors import PipelineError
from stages.scores import compare, record_scores, score_groups, score_task


def scored(metric: str, references: list[str], systems: dict[str, list[str]], seed: int = 1) -> Any:
    return score_task([metric], references, systems, 200, seed)["metrics"][metric]


def test_the_table_has_every_metric_and_system_and_the_difference() -> None:
    references, good = corpus(50, 0.2, seed=1)
    systems = {"pretrained": good, "scratch": corpus(50, 0.6, seed=1)[1], "baseline": references}
    found = score_task(["chrf", "ter"], references, systems, 100, 1)
    assert set(found["signatures"]) == set(found["metrics"]) == {"chrf", "ter"}
    for name, table in found["metrics"].items():
        assert set(table) == {*systems, "difference", "over_baseline"}
        for system, texts in systems.items():
            assert table[system]["score"] == pytest.approx(score(name, references, texts), abs=1e-4)
            assert table[system]["low"] <= table[system]["score"] <= table[system]["high"]
        assert table["difference"] == compare(name, references, good, systems["scratch"], 100, 1)
        assert table["over_baseline"] == compare(name, references, good, references, 100, 1)
    assert found["metrics"]["ter"]["difference"]["high"] < 0 < found["metrics"]["chrf"]["difference"]["low"]
    assert set(score_task(["chrf"], references, {"pretrained": good}, 100, 1)["metrics"]["chrf"]) == {"pretrained"}
    two = {"pretrained": good, "baseline": references}
    assert set(score_task(["chrf"], references, two, 100, 1)["metrics"]["chrf"]) == {*two, "over_baseline"}


def test_signatures_are_of_the_references_at_hand() -> None:
    table = score_task(["bleu", "chrf"], ["打开客厅的灯。", "关闭它。"], {"pretrained": ["打开客厅的门。", "x"]}, 50, 1)
    assert "|tok:char|" in table["signatures"]["bleu"]
    assert table["metrics"]["bleu"]["pretrained"]["score"] > 20


def test_equal_seeds_give_equal_intervals() -> None:
    references, predictions = corpus(50, 0.5, seed=11)
    first, again = (scored("bleu", references, {"a": predictions}, seed=4) for _ in range(2))
    assert first == again
    assert first != scored("bleu", references, {"a": predictions}, seed=5)


def test_groups_are_scored_as_if_they_were_all_there_is() -> None:
    references, predictions = corpus(40, 0.4, seed=2)
    groups = [[0, 3, 7, 9], list(range(10, 40))]
    found = score_groups("chrf", references, {"a": predictions}, groups, 100, 6)
    for group, table in zip(groups, found, strict=True):
        alone = [references[n] for n in group], {"a": [predictions[n] for n in group]}
        assert table["a"] == score_task(["chrf"], *alone, 100, 6)["metrics"]["chrf"]["a"]


def test_single_records_are_scored_by_themselves() -> None:
    references, predictions = corpus(8, 0.5, seed=3)
    for name in ("chrf", "ter", "f1", "macro_f1"):
        expected = [score(name, [r], [p]) for r, p in zip(references, predictions, strict=True)]
        if name == "macro_f1":  # whose labels are those of all records
            expected = [100.0 * (r == p) for r, p in zip(references, predictions, strict=True)]
        assert record_scores(name, references, predictions) == pytest.approx(expected)


def test_wrong_inputs_are_one_line() -> None:
    with pytest.raises(PipelineError, match="no test records"):
        score_task(["bleu"], [], {"a": []}, 10, 1)
    with pytest.raises(PipelineError, match="a has 1 predictions for 2 references"):
        score_task(["bleu"], ["x", "y"], {"a": ["x"]}, 10, 1)
    with pytest.raises(PipelineError, match="the second system has 1 predictions for 2 references"):
        compare("bleu", ["x", "y"], ["x", "y"], ["x"], 10, 1)
