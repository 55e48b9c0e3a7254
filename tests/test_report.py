"""The report: an honest verdict, all numbers, nothing of the data read as HTML, no path of the machine."""

import csv
import hashlib
import json
import random
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from ruamel.yaml import YAML

from lightning_modules.errors import PipelineError
from lightning_modules.flops import parameters
from stages.answers import Answers, Texts
from stages.estimate_devices import CPU_HALF_SHARE, CPU_SHARE
from stages.estimate_trainings import trainings
from stages.evaluate import analyse, summarise, write_predictions
from stages.lineage import remember_latest
from stages.model_card import model_card
from stages.params import load_params
from stages.report import gather, metrics
from stages.report_costs import costs
from stages.report_page import Results, page
from stages.report_plots import attention_svg
from stages.report_table import HEADER, comparison_table, table_text
from stages.tasks import TASKS

REPOSITORY = Path(__file__).parents[1]
SMALL = Path(__file__).with_name("params.yaml")
EVIL = "<script>alert('x')</script> & \"quoted\""
MD5 = "0123456789abcdef.dir"
CPU, GPUS = "Some CPU, 2 cores, Linux 6.1", "16 × Some GPU, 64 cores, Linux 6.1"
AUTHOR = ["-c", "user.name=t", "-c", "user.email=t@example.org"]


def texts_of(task: str, records: int, draw: random.Random) -> tuple[Texts, dict[str, Answers]]:
    """Test records with text that would break a careless page, and answers of which more or fewer words are right."""
    words = ["create", "delete", "list", "the", "your", "table", "bucket", "policy", "role", "name", "of", "for"]
    about = TASKS[task]
    targets = [" ".join(draw.choices(words, k=1 if about.kind == "class" else 6)) for _ in range(records)]
    answers = {
        system: [" ".join(w if draw.random() < right else "x" for w in target.split()) for target in targets]
        for system, right in (("pretrained", 0.8), ("scratch", 0.5), ("baseline", 0.3))
    }
    filler = [" ".join(draw.choices(words, k=draw.randint(1, 60))) for _ in targets]
    sources = [f"{EVIL} {lead} {target} \u2028" for lead, target in zip(filler, targets, strict=True)]
    found = {}
    if about.kind == "span":
        targets[:5] = [""] * 5  # questions without an answer
    for system, better in (("pretrained", 0.9), ("scratch", 1.0)):
        sizes = np.array([[len(target)] for target in targets], dtype=np.float64)
        likelihood_N3 = sizes * [better, 0.25, 1.0]
        probabilities = None if about.kind == "text" else [draw.random() for _ in targets]
        found[system] = Answers(answers[system], probabilities, likelihood_N3, cut=3)
    ids, starts = [str(n) for n in range(records)], [""] * records
    return Texts(ids, sources, targets, list(targets), starts, answers["baseline"], about.baseline_name), found


def write_results(root: Path, records: int = 40) -> None:
    """Results of all tasks as the stages before leave them."""
    draw = random.Random(1)
    for task in TASKS:
        texts, found = texts_of(task, records, draw)
        folder = root / "reports" / "tasks" / task
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text(json.dumps(summarise(task, texts, found, 100, 1)))
        (folder / "analysis.json").write_text(json.dumps(analyse(task, texts, found, 100, 1)))
        write_predictions(folder / "predictions.jsonl", texts, found)
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
        "cut": 16,
        "repeated": 250,
        "quarantined": 7,
        "dropped": {"min_characters": 19, "languages": 0, "gopher_stop_words": 250},
        "trimmed": 5,
        "lines_removed": {"c4_line_end": 77},
        "masked": {"email": 88},
        "duplicates": 24,
        "kept": {"train": 1100, "validation": 60, "test": 40},
        "characters": 1234567,
    }
    prepare = {"pretraining": {"botocore": counts, "<b>mine</b>": counts}, "translation": {"homeassistant": counts}}
    (root / "reports" / "prepare.json").write_text(json.dumps(prepare))
    dropped = {"purpose": "pretraining", "source": "<b>mine</b>", "filter": "gopher_stop_words", "text": EVIL}
    lines = [json.dumps(dropped), json.dumps(dropped | {"detail": "<i>none</i>", "text": "another"})]
    (root / "reports" / "dropped.jsonl").write_text("\n".join(lines))
    measures = {name: {"score": 1.5, "low": 1.4, "high": 1.62} for name in ("perplexity", "bits_per_byte")}
    measured = {"objective": {"causal_lm": 1.0}, "batches": 32, "tokens": 65536}
    (root / "reports" / "pretraining.json").write_text(json.dumps(measured | measures))
    leakage = {"translation/test": {"records": 40, "leaked": 3, "share": 0.075, "histogram": [0] * 10}}
    (root / "reports" / "leakage.json").write_text(json.dumps(leakage))
    for name in ("pretrained", *TASKS, *(f"{task}-scratch" for task in TASKS)):
        folder = root / "models" / name
        folder.mkdir(parents=True)
        numbers = {"steps": 600, "tokens": 2_400_000, "seconds": 71.5, "tokens_per_second": 33566.4, "best_step": 600}
        numbers |= {"flops": 5e12, "peak_flops": 2e11, "peak_memory": 9e8, "devices": 1, "on_gpu": False}
        numbers["precision"] = "bf16-mixed" if name == "pretrained" else "32-true"
        numbers |= {"machine": GPUS if name == "pretrained" else CPU, "missing": 7 * (name == "question_answering")}
        (folder / "training.json").write_text(json.dumps(numbers | {"validation_loss": 2.345, "parameters": 4_000_000}))
        limits = {"max_source_tokens": 64, "max_target_tokens": 16}
        (folder / "config.json").write_text(json.dumps({"transformer": {"d_model": 128, "heads": 4}, "limits": limits}))
    with (root / "models" / "pretrained" / "curve.csv").open("w", newline="") as file:
        rows = [
            (step, 9 * step**-0.2, 9.1 * step**-0.2 if step % 300 == 0 else "", 1e-3, 30000)
            for step in range(12, 1201, 12)
        ]
        csv.writer(file).writerows(
            [("step", "train_loss", "validation_loss", "learning_rate", "tokens_per_second"), *rows]
        )
    write_params(root)
    (root / "data" / "tokenizer").mkdir(parents=True)
    (root / "data" / "tokenizer" / "tokenizer.json").write_text("{}")
    outputs = {
        "prepare": "prepared",
        "fetch@botocore": "raw/botocore",
        "fetch@gone": "raw/gone",
        "finetune@gone": "gone",
    }
    lock = {name: {"outs": [{"path": f"data/{path}", "md5": MD5}]} for name, path in outputs.items()}
    (root / "dvc.lock").write_text(json.dumps({"schema": "2.0", "stages": lock}))
    for command in (["init", "-q"], ["add", "params.yaml"], [*AUTHOR, "commit", "-qm", "results"]):
        subprocess.run(["git", *command], cwd=root, check=True)


def write_params(root: Path) -> None:
    """The tests' params.yaml with every task, and with a password in a comment."""
    yaml = YAML()
    params = yaml.load(SMALL.read_text().replace("experiment: default ", "experiment: a study "))
    for task in sorted(TASKS.keys() - params["tasks"].keys()):
        params["tasks"][task] = params["tasks"]["translation"]
        columns = {name: name for name in TASKS[task].fields}
        params["data"][task] = [{"source": "botocore", "reader": "table", "columns": columns}]
    with (root / "params.yaml").open("w") as file:
        yaml.dump(params, file)
        file.write("# <b>from</b> https://me:geheim@example.org/texts?token=geheim\n")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("written")
    write_results(root)
    return root


@pytest.fixture(scope="module")
def results(written: Path) -> Results:
    """Gathered for all who change nothing."""
    return gather(written)


@pytest.fixture(scope="module")
def html(results: Results) -> str:
    return page(results)


@pytest.fixture
def root(written: Path, tmp_path: Path) -> Path:
    """A copy of the results, to change at will."""
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_the_table_holds_every_metric_with_the_primary_first(written: Path) -> None:
    rows = comparison_table(written / "reports", TASKS)
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


def test_the_page_is_whole_and_quotes_the_data_as_text(written: Path, results: Results, html: str) -> None:
    tags = Tags()
    tags.feed(html)
    assert tags.open == []
    assert "script" not in tags.seen
    assert tags.outside == []
    assert "&lt;script&gt;" in html
    assert "&lt;b&gt;mine" in html
    assert html.count("<svg") == len(results.pictures)
    assert {name for name in results.pictures if not name.startswith(("curve_", "attention_", "length_"))} == {
        *("scores", "evidence_question_answering", "confusion_classification"),
        *("calibration_question_answering", "calibration_classification"),
    }
    for primary in (row for row in results.rows if row.primary):
        assert primary.verdict() in html
    for shown in (
        "1,234,567",
        "quarantined",
        "0123456789abcdef.dir",
        "best: 100",
        "random: ",
        "bits per byte",
        "7.5%",
        "(causal_lm, 65,536 predictions): 1.50 [1.40, 1.62] perplexity",
        "and so cut: ",
        "translation 3",
        "is too long: question answering 7.",
        "without an answer",
        "p = 0.010",
    ):
        assert shown in html
    assert str(written) not in html
    assert str(REPOSITORY) not in html


def test_what_it_was_made_from_stands_in_the_page_and_in_every_card(written: Path, results: Results, html: str) -> None:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=written, capture_output=True, text=True, check=True)
    tokenizer = hashlib.sha256(b"{}").hexdigest()
    others = [name for name in results.training if name != "pretrained"]
    assert len(others) == 2 * len(TASKS)
    lineage = dict(results.lineage)
    for name, value in (
        ("code (git commit)", commit.stdout.strip()),
        ("params.yaml (SHA-256)", hashlib.sha256((written / "params.yaml").read_bytes()).hexdigest()),
        ("data/tokenizer/tokenizer.json (SHA-256)", tokenizer),
        ("data/prepared (MD5 in DVC)", MD5),
        ("data/raw/botocore (MD5 in DVC)", MD5),
        (f"trained on {GPUS}", "pretrained"),
        (f"trained on {CPU}", ", ".join(others)),
    ):
        assert lineage[name] == value
        assert f"<td>{name}</td><td><code>{value}</code></td>" in html
        assert f"| {name} | `{value}` |" in model_card("translation", results)
    assert lineage["this page made on"]


def test_params_are_in_the_page_whole_but_for_passwords(written: Path, html: str) -> None:
    [shown] = re.findall(r"<details><summary>params.yaml</summary><pre>(.*?)</pre></details>", html, re.S)
    ours = (written / "params.yaml").read_text()
    assert "geheim" in ours
    assert unescape(shown) == ours.replace("me:geheim@", "").replace("token=geheim", "token=***")


def test_what_a_run_with_other_tasks_has_left_is_no_part_of_it(root: Path, results: Results) -> None:
    shutil.copytree(root / "reports" / "tasks" / "translation", root / "reports" / "tasks" / "gone")
    measured = json.loads((root / "reports" / "tasks" / "gone" / "metrics.json").read_text())
    (root / "reports" / "tasks" / "gone" / "metrics.json").write_text(json.dumps(measured | {"task": "gone"}))
    for name in ("gone", "gone-scratch"):
        shutil.copytree(root / "models" / "translation", root / "models" / name)
    gathered = gather(root)
    assert dict(gathered.lineage).keys() == dict(results.lineage).keys()
    assert gathered == results
    assert "gone" not in page(gathered)


def test_the_page_links_the_runs_that_it_comes_from(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("PIPELINE_FLOW_URL", "http://me:secret@127.0.0.1:4200/runs/flow-run/1")
    for stage in ("prepare", "report", "tokenize", "finetune@gone"):
        remember_latest(stage, root, {}, f"run-of-{stage}", "7")
    tags = Tags()
    tags.feed(page(gather(root)))
    # dvc.lock does not know `tokenize`; what a former report's run was is no source of this one.
    assert tags.outside == [
        "http://127.0.0.1:4200/runs/flow-run/1",
        "http://127.0.0.1:5000/#/experiments/7/runs/run-of-prepare",
    ]


def test_what_was_dropped_and_why(html: str) -> None:
    """Every filter that dropped something is named with its number and its share, and what was not is not."""
    rows = [re.sub("<[^>]*>", "|", row) for row in re.findall("<tr.*?</tr>", html)]
    about = [re.sub(r"\|+", "|", row).strip("|") for row in rows if "gopher stop words" in row]
    where = ["pretraining|botocore", "pretraining|&lt;b&gt;mine&lt;/b&gt;", "translation|homeassistant"]
    assert about == [f"{one}|gopher stop words|a rule of prepare.quality|250|20.00%" for one in where]
    assert not any("|languages|" in row for row in rows)
    assert sum("|c4 line end|" in row and "|77|" in row for row in rows) == 3
    assert sum("|email|" in row and "|88|" in row for row in rows) == 3
    assert sum("|trimmed|" in row and "|5|" in row for row in rows) == 3
    [details] = re.findall("<details><summary>pretraining, &lt;b&gt;mine.*?</details>", html)
    assert details.count("<dd>") == 2
    assert "&lt;i&gt;none&lt;/i&gt;" in details


def test_numbers_for_dvc_metrics_show(results: Results) -> None:
    table = metrics(results)
    chrf = table["translation"]["chrf"]
    assert chrf["gain"] == pytest.approx(chrf["pretrained"] - chrf["scratch"], abs=1e-3)
    assert chrf["gain_low"] <= chrf["gain"] <= chrf["gain_high"]
    assert 0 < chrf["gain_p"] <= 1
    bits = table["translation"]["bits_per_byte"]
    assert bits["pretrained"] == pytest.approx(0.9 * bits["scratch"], abs=1e-3)
    assert set(table["question_answering"]["calibration_error"]) == {"pretrained", "scratch"}
    trained = {"validation_loss": 2.345, "steps": 600, "tokens": 2400000, "seconds": 71.5}
    assert table["pretraining"] == trained | {"test_perplexity": 1.5, "test_bits_per_byte": 1.5}


def test_what_is_missing_or_broken_is_one_line(written: Path, tmp_path: Path) -> None:
    write_params(tmp_path)
    with pytest.raises(PipelineError, match="holds no result: run the evaluate stages first"):
        gather(tmp_path)
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "reports" / "tasks" / "translation" / "metrics.json"
    path.write_text(path.read_text().replace('"primary"', '"first"'))
    with pytest.raises(PipelineError, match=r"translation/metrics.json is not what evaluate writes \(KeyError"):
        gather(tmp_path)
    path.unlink()
    with pytest.raises(PipelineError, match="holds no result of translation: run the evaluate stages first"):
        gather(tmp_path)


def test_the_stage_writes_all_files_and_prints_the_table(root: Path, results: Results) -> None:
    command = [sys.executable, "-m", "stages.report"]
    environment = {"PYTHONPATH": str(REPOSITORY), "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}  # nobody there
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True)
    assert re.search(r"^translation +chrF +\d", done.stdout, re.MULTILINE)
    assert done.stdout.rstrip().endswith("report: reports/report.html")
    numbers, scores = (json.loads((root / "reports" / f"{name}.json").read_text()) for name in ("metrics", "scores"))
    assert set(numbers) == set(scores) == {*TASKS, "pretraining"}
    for task in TASKS:
        primary = numbers[task][TASKS[task].primary]
        assert scores[task] == {TASKS[task].primary: primary["pretrained"], "gain": primary["gain"]}
    assert (root / "reports" / "report.html").read_text().startswith("<!doctype html>")
    assert {path.stem for path in (root / "reports" / "model_cards").glob("*.md")} == set(TASKS)
    plots = {path.stem: path.read_text() for path in (root / "reports" / "plots").glob("*.svg")}
    assert plots == results.pictures
    for picture in plots.values():
        ElementTree.fromstring(picture)
    assert "warning: MLflow at http://127.0.0.1:9 does not answer" in done.stderr


def test_estimates_stand_beside_what_it_took(results: Results, html: str) -> None:
    planned = {one.name: one for one in trainings(load_params(SMALL))}
    for name, training, share in (
        ("pretrained", planned["pretrain"], CPU_HALF_SHARE),
        ("translation-scratch", planned["translation"], CPU_SHARE),
    ):
        flops, seconds, memory = (cost for cost in results.costs if cost.model == name)
        assert flops.estimated == pytest.approx(training.steps * training.flops)
        assert seconds.estimated == pytest.approx(flops.estimated / 2e11 / share)
        assert (flops.taken, seconds.taken, memory.taken) == (5e12, 71.5, 9e8)
        assert memory.estimated > 16 * sum(parameters(training.config).values())  # weights, gradients, two averages
    assert "taken / estimated" in html
    assert f">{5e12 / flops.estimated:.2f}<" in html


def test_all_devices_of_a_training_are_counted_once(results: Results) -> None:
    """training.json has those of all machines, or the processes of one CPU."""
    params, facts = load_params(SMALL), results.training["pretrained"]
    two = params.model_copy(update={"pretrain": params.pretrain.model_copy(update={"num_nodes": 2})})
    for on_gpu in (True, False):
        taken = facts | {"devices": 16, "on_gpu": on_gpu}
        flops, _, _ = costs(two, {"pretrained": taken})
        pretraining = trainings(two)[0]
        assert flops.estimated == pytest.approx(pretraining.steps * pretraining.flops / 16)
