"""Tasks as they are declared: every one whole, and the page on adding one says what works."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from ruamel.yaml import YAML

from lightning_modules.decoding import Decoding
from lightning_modules.errors import PipelineError
from stages.params_data import Table
from stages.params_schema import Params
from stages.prepare import prepare
from stages.scores import score_task
from stages.tasks import TASKS, Task, language_tag

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/adding-a-task.md").read_text()


def record_of(task: Task) -> dict[str, str]:
    return {name: f"An example of a {name}. And more." for name in (*task.fields, *task.extras)}


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_whole(name: str) -> None:
    task = TASKS[name]
    record = record_of(task)
    source = task.source_text(record)
    for field in task.fields[:-1]:
        assert record[field] in source
    assert task.target_text(record) == record[task.fields[-1]]
    assert record[task.fields[-1]] not in source, "the answer is in the question"
    assert task.primary in task.metrics
    assert ("encoder" in task.architectures) == (task.kind != "text")
    assert not callable(task.baseline) or task.baseline(record) != ""
    assert Decoding(max_tokens=8, **task.decoding).answers == 1


@pytest.mark.parametrize("name", TASKS)
def test_its_metrics_are_known_and_reward_the_right_answer(name: str) -> None:
    task = TASKS[name]
    references = [f"a reference of its own {n} {'long' * n}" for n in range(8)]
    systems = {"right": references, "wrong": ["nothing of it"] * 8}
    scores = score_task(task.metrics, references, systems, samples=100, seed=1)["metrics"][task.primary]
    assert scores["right"]["score"] > scores["wrong"]["score"]


@pytest.mark.parametrize("language", ["de", "pt-BR", "zh_Hans", "yue"])
def test_copying_the_source_leaves_the_tag_out(language: str) -> None:
    copy = TASKS["translation"].baseline
    assert callable(copy)
    assert copy({"source": f"{language_tag(language)}Open to de: light"}) == "Open to de: light"
    assert copy({"source": "Welcome to de: light"}) == "Welcome to de: light"
    entry = {"source": "a", "reader": "table", "columns": {"source": "a"}, "to": language}
    assert Table.model_validate(entry).tag == language_tag(language)


@pytest.mark.parametrize("metric", ["ter", "perplexity"])
def test_no_task_is_led_by_a_metric_of_which_less_is_better(metric: str) -> None:
    with pytest.raises(PipelineError, match=rf"cannot be led by {metric}, of which less is better: .* Lead with chrf"):
        replace(TASKS["translation"], primary=metric)


def test_what_counts_as_right_is_the_target_and_what_the_data_says_besides() -> None:
    task = TASKS["question_answering"]
    record = {"question": "Who?", "context": "Ada, or Countess Ada.", "answer": "Ada"}
    assert task.references(record) == task.references(record | {"other_answers": ""}) == "Ada"
    assert task.references(record | {"other_answers": '["Countess Ada"]'}) == ["Ada", "Countess Ada"]


def test_of_a_dialogue_the_end_is_kept_and_the_last_turn_repeated() -> None:
    task = TASKS["dialogue"]
    assert task.keep == "end"
    assert callable(task.baseline)
    assert task.baseline({"history": "Hello!\nHow are you?"}) == "How are you?"


def test_the_page_on_adding_a_task_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [code] = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    [block] = re.findall(r"```yaml\n(.*?)```", PAGE, re.S)
    asked = YAML(typ="safe").load(block)
    added = dict(TASKS)
    exec(code, {"TASKS": added, "Task": Task})
    monkeypatch.setitem(TASKS, "paraphrase", added["paraphrase"])

    values = YAML(typ="safe").load((ROOT / "params.yaml").read_text())
    text = {"source": "pairs", "reader": "table", "columns": {"text": "rewritten"}, "group": "author"}
    values |= {"data": {"pretraining": [text], **asked["data"]}, "tasks": asked["tasks"]}
    values["prepare"] |= {"validation_share": 0.3, "test_share": 0.3}
    (tmp_path / "raw/pairs").mkdir(parents=True)
    rows = [{"original": f"sentence {'x' * n}", "rewritten": f"words {'y' * n}", "author": n % 9} for n in range(40)]
    (tmp_path / "raw/pairs/a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare(Params.model_validate(values), tmp_path / "raw", tmp_path / "out", tmp_path / "report.json", workers=1)
    [first, *_] = pq.read_table(tmp_path / "out/paraphrase/train.parquet").to_pylist()
    assert TASKS["paraphrase"].source_text(first) == f"paraphrase: {first['sentence']}"
    assert first["paraphrase"].startswith("words")
    told = set(re.findall(r"^\| `(\w+)`(?:, `(\w+)`)?", PAGE, re.M))
    assert {name for pair in told for name in pair if name} == set(Task.__dataclass_fields__)
