"""The report: an honest verdict, all numbers, nothing of the data read as HTML, no path of the machine."""

import csv
import json
import random
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_modules.errors import PipelineError
from lightning_modules.flops import parameters
from stages.estimate_devices import CPU_SHARE
from stages.estimate_trainings import trainings
from stages.params import load_params
from stages.report import gather, metrics
from stages.report_page import page
from stages.report_plots import attention_svg
from stages.report_table import HEADER, Interval, Row, comparison_table, table_text
from stages.scores import score_task
from stages.tasks import TASKS

REPOSITORY = Path(__file__).parents[1]
SMALL = Path(__file__).with_name("params.yaml")
EVIL = "<script>alert('x')</script> & \"quoted\""


def write_results(root: Path, records: int = 40) -> None:
    """Results of all three tasks as the stages before leave them, with text that would break a careless page."""
    draw = random.Random(1)
    words = ["create", "delete", "list", "the", "your", "table", "bucket", "policy", "role", "name", "of", "for"]
    for task, about in TASKS.items():
        targets = [" ".join(draw.choices(words, k=6)) for _ in range(records)]
        answers = {
            system: [" ".join(w if draw.random() < right else "x" for w in target.split()) for target in targets]
            for system, right in (("pretrained", 0.8), ("scratch", 0.5), ("baseline", 0.3))
        }
        scores = score_task(about.metrics, targets, answers, 100, 1)
        summary = {"task": task, "records": records, "primary": about.primary, "baseline_name": about.baseline_name}
        folder = root / "reports" / "tasks" / task
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text(json.dumps(summary | scores))
        with (folder / "predictions.jsonl").open("w") as file:
            for number, target in enumerate(targets):
                row = {"id": str(number), "source": f"{EVIL} {target} \u2028", "target": target}
                file.write(json.dumps(row | {s: a[number] for s, a in answers.items()}, ensure_ascii=False) + "\n")
        curve = [("init", "step", "train_loss", "validation_loss")]
        for system, worse in (("pretrained", 0.0), ("scratch", 0.8)):
            for step in range(20, 620, 20):
                loss = 5 * step**-0.2 + worse
                curve.append((system, str(step), f"{loss + draw.random() / 5}", str(loss) if step % 200 == 0 else ""))
        with (folder / "curve.csv").open("w", newline="") as file:
            csv.writer(file).writerows(curve)
        picture = attention_svg(["a", EVIL], ["$x$", EVIL, "b"], np.full((3, 2, 3), 1 / 3))
        (folder / "attention.svg").write_text(picture)
    write_upstream(root)


def write_upstream(root: Path) -> None:
    counts = {
        "read": 1234,
        "cut": 0,
        "quarantined": 7,
        "dropped": {"too_short": 3, "too_few_letters": 0},
        "duplicates": 24,
        "kept": {"train": 1100, "validation": 60, "test": 40},
        "characters": 1234567,
    }
    prepare = {"pretraining": {"botocore": counts, "<b>mine</b>": counts}, "translation": {"homeassistant": counts}}
    (root / "reports" / "prepare.json").write_text(json.dumps(prepare))
    for name in ("pretrained", *TASKS, *(f"{task}-scratch" for task in TASKS)):
        folder = root / "models" / name
        folder.mkdir(parents=True)
        numbers = {"steps": 600, "tokens": 2_400_000, "seconds": 71.5, "tokens_per_second": 33566.4, "best_step": 600}
        numbers |= {"flops": 5e12, "peak_flops": 2e11, "peak_memory": 9e8, "devices": 1, "on_gpu": False}
        (folder / "training.json").write_text(json.dumps(numbers | {"validation_loss": 2.345, "parameters": 4_000_000}))
    with (root / "models" / "pretrained" / "curve.csv").open("w", newline="") as file:
        rows = [
            (step, 9 * step**-0.2, 9.1 * step**-0.2 if step % 300 == 0 else "", 1e-3, 30000)
            for step in range(12, 1201, 12)
        ]
        csv.writer(file).writerows(
            [("step", "train_loss", "validation_loss", "learning_rate", "tokens_per_second"), *rows]
        )
    (root / "params.yaml").write_text(SMALL.read_text().replace("experiment: default ", "experiment: a study "))
    lock: dict[str, Any] = {"prepare": {"outs": [{"path": "data/prepared", "md5": "0123456789abcdef.dir"}]}}
    (root / "dvc.lock").write_text(json.dumps({"schema": "2.0", "stages": lock}))


def row(difference: tuple[float, float, float], baseline: float = 10) -> Row:
    rest = {"metric": "chrf", "primary": True, "records": 9, "baseline_name": "copy the source", "signature": ""}
    scores = {
        "pretrained": Interval(30, 28, 32),
        "scratch": Interval(26, 25, 27),
        "baseline": Interval(baseline, 9, 11),
    }
    return Row(task="question_answering", difference=Interval(*difference), **scores, **rest)  # type: ignore[arg-type]


def test_the_verdict_is_honest() -> None:
    assert row((4, 2.5, 5.5)).verdict() == (
        "Pre-training bought +4.0 [+2.5, +5.5] chrF: 30.0 against 26.0 from scratch."
    )
    assert (
        row((1, -0.5, 2)).verdict().startswith("Pre-training made no sure difference: +1.0 [-0.5, +2.0] chrF, and the")
    )
    assert row((-1, -2, -0.5)).verdict().startswith("Pre-training cost -1.0 [-2.0, -0.5] chrF: ")
    assert "but no more than the trivial baseline (copy the source: 40.0)." in row((4, 2, 5), baseline=40).verdict()


def test_the_table_holds_every_metric_with_the_primary_first(tmp_path: Path) -> None:
    write_results(tmp_path)
    rows = comparison_table(tmp_path / "reports")
    assert len(rows) == sum(len(task.metrics) for task in TASKS.values())
    firsts = {row.task: row for row in reversed(rows)}
    assert all(firsts[name].metric == task.primary for name, task in TASKS.items())
    lines = table_text(rows).split("\n")
    assert len(lines) == len(rows) + 2
    assert re.split(" {2,}", lines[0]) == list(HEADER)
    assert str(rows[0].pretrained) in lines[2]


class Tags(HTMLParser):
    """Collects tags and checks that they close."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.outside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.outside += [str(value) for name, value in attrs if name in ("src", "href") and "://" in str(value)]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_quotes_the_data_as_text(tmp_path: Path) -> None:
    write_results(tmp_path)
    results = gather(tmp_path)
    html = page(results)
    tags = Tags()
    tags.feed(html)
    assert tags.open == []
    assert "script" not in tags.seen
    assert tags.outside == []
    assert "&lt;script&gt;" in html
    assert "&lt;b&gt;mine" in html
    assert html.count("<svg") == 8, "scores, pre-training, three tasks and where their models look"
    for primary in (row for row in results.rows if row.primary):
        assert primary.verdict() in html
    for shown in ("1,234,567", "quarantined", "0123456789abcdef.dir", "best: 100"):
        assert shown in html
    assert str(tmp_path) not in html
    assert str(REPOSITORY) not in html


def test_numbers_for_dvc_metrics_show(tmp_path: Path) -> None:
    write_results(tmp_path)
    table = metrics(gather(tmp_path))
    chrf = table["translation"]["chrf"]
    assert chrf["gain"] == pytest.approx(chrf["pretrained"] - chrf["scratch"], abs=1e-3)
    assert chrf["gain_low"] <= chrf["gain"] <= chrf["gain_high"]
    assert table["pretraining"] == {"validation_loss": 2.345, "steps": 600, "tokens": 2400000, "seconds": 71.5}


def test_what_is_missing_or_broken_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="holds no result: run the evaluate stages first"):
        gather(tmp_path)
    write_results(tmp_path)
    path = tmp_path / "reports" / "tasks" / "translation" / "metrics.json"
    path.write_text(path.read_text().replace('"primary"', '"first"'))
    with pytest.raises(PipelineError, match=r"translation/metrics.json is not what evaluate writes \(KeyError"):
        gather(tmp_path)


def test_the_stage_writes_both_files_and_prints_the_table(tmp_path: Path) -> None:
    write_results(tmp_path)
    command = [sys.executable, "-m", "stages.report"]
    environment = {"PYTHONPATH": str(REPOSITORY), "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}  # nobody there
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert re.search(r"^translation +chrF +\d", done.stdout, re.MULTILINE)
    assert done.stdout.rstrip().endswith("report: reports/report.html")
    assert set(json.loads((tmp_path / "reports" / "metrics.json").read_text())) == {*TASKS, "pretraining"}
    assert (tmp_path / "reports" / "report.html").read_text().startswith("<!doctype html>")
    assert "warning: MLflow at http://127.0.0.1:9 does not answer" in done.stderr


def test_estimates_stand_beside_what_it_took(tmp_path: Path) -> None:
    write_results(tmp_path)
    results = gather(tmp_path)
    planned = {one.name: one for one in trainings(load_params(SMALL))}
    for name, training in (("pretrained", planned["pretrain"]), ("translation-scratch", planned["translation"])):
        flops, seconds, memory = (cost for cost in results.costs if cost.model == name)
        assert flops.estimated == pytest.approx(training.steps * training.flops)
        assert seconds.estimated == pytest.approx(flops.estimated / 2e11 / CPU_SHARE)
        assert (flops.taken, seconds.taken, memory.taken) == (5e12, 71.5, 9e8)
        assert memory.estimated > 16 * sum(parameters(training.config).values())  # weights, gradients, two averages
    html = page(results)
    assert "taken / estimated" in html
    assert f">{5e12 / flops.estimated:.2f}<" in html
