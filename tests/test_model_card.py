"""The model card: what Hugging Face's own reader finds in it, and what a person does."""

from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from test_report import write_results

from stages.model_card import model_card
from stages.report import gather
from stages.report_page import Results
from stages.tasks import TASKS


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    root = tmp_path_factory.mktemp("card")
    write_results(root)
    return gather(root)


@pytest.mark.parametrize("task", TASKS)
def test_the_hub_reads_every_score(results: Results, task: str) -> None:
    card = ModelCard(model_card(task, results))
    rows = [row for row in results.rows if row.task == task]
    scores = {found.metric_name: found.metric_value for found in card.data.eval_results}
    assert scores == {row.metric_name: row.pretrained.score for row in rows}
    assert {found.dataset_split for found in card.data.eval_results} == {"test"}
    assert task in card.data.tags


def test_a_person_reads_what_it_is_worth_and_what_it_was_made_from(results: Results, tmp_path: Path) -> None:
    text = model_card("question_answering", results)
    primary = next(row for row in results.rows if row.task == "question_answering" and row.primary)
    for part in (primary.verdict(), str(primary.baseline), primary.baseline_name, primary.difference.signed()):
        assert part in text
    for part in ("bits per byte of the references", "words before the answer", "expected calibration error"):
        assert part in text
    assert "| pretraining: <b>mine</b> | 1,100 | 60 | 40 |" in text
    assert "| data/prepared (MD5 in DVC) | `0123456789abcdef.dir` |" in text
    assert "| d model | 128 |" in text
    assert str(tmp_path.parent) not in text
