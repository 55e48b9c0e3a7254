"""Scores the pre-trained and the from-scratch model of a task, and a trivial baseline, on the same test records.

Reads data/prepared/TASK (test.parquet; train.parquet for some baselines) and both models; writes reports/tasks/TASK:
metrics.json with 95 % intervals and paired tests, analysis.json (what one score hides: stages/analysis.py),
predictions.jsonl, curve.csv, attention.svg. What it costs is what the models take to answer (`stages.answers`).
"""

import argparse
import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_modules.allocator import keep_memory
from lightning_modules.errors import PipelineError
from stages.answers import Answers, Texts, answers_of, engine_of, texts_of
from stages.console import run_stage, stage_parser
from stages.outputs import whole_directory
from stages.params import Params, load_params
from stages.splits import read_split
from stages.tasks import TASKS

if TYPE_CHECKING:
    from lightning_modules.text_to_text import TextToText

MAP_TOKENS = 40  # most tokens on a side of the attention map
SYSTEMS = {"pretrained": "", "scratch": "-scratch"}  # name of a system → ending of its model's folder
Json = dict[str, Any]


def evaluate(params: Params, task: str) -> None:
    """Writes reports/tasks/TASK. Raises PipelineError where the test split is empty or the task unknown."""
    import torch

    from lightning_modules.text_to_text import TextToText
    from stages.tracking import stage_run

    if task not in params.tasks:
        raise PipelineError(f"no task {task!r} in params.yaml, which has {', '.join(params.tasks)}")
    torch.set_num_threads(params.evaluate.threads)
    keep_memory()
    about = TASKS[task]
    prepared = Path("data/prepared") / task
    texts = texts_of(about, read_split(prepared, "test", params.evaluate.max_records), prepared / "train.parquet")
    folders = {system: Path("models") / f"{task}{ending}" for system, ending in SYSTEMS.items()}
    settings = {"seed": params.seed, "evaluate": params.evaluate.model_dump(), "records": len(texts.ids)}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    inputs = [prepared / "test.parquet", prepared / "train.parquet", *folders.values()]
    with stage_run(f"evaluate@{task}", params=settings, inputs=inputs) as run:
        found: dict[str, Answers] = {}
        for system, folder in folders.items():
            answering = TextToText.load(folder, device)
            engine = engine_of(params, answering, folder)
            found[system] = answers_of(answering, engine, about, texts, f"{task} {system}")
            if system == "pretrained":
                picture = _attention(answering, texts.sources)
        chance = params.evaluate.bootstrap_samples, params.seed
        summary, details = summarise(task, texts, found, *chance), analyse(task, texts, found, *chance)
        summary["trainings"] = {system: _course(folder) for system, folder in folders.items()}
        with whole_directory(Path("reports/tasks") / task) as output:
            (output / "metrics.json").write_text(json.dumps(summary, indent=2) + "\n")
            (output / "analysis.json").write_text(
                json.dumps(details, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
            )
            write_predictions(output / "predictions.jsonl", texts, found)
            _join_curves(folders, output / "curve.csv")
            (output / "attention.svg").write_text(picture, encoding="utf-8")
        run.log_metrics(_numbers(summary, details))
        for name in ("metrics.json", "analysis.json", "predictions.jsonl", "attention.svg"):
            run.log_artifact(Path("reports/tasks") / task / name)


def summarise(task: str, texts: Texts, found: dict[str, Answers], samples: int, seed: int) -> Json:
    """metrics.json: the scores of both models and the baseline, by the task's metrics."""
    from stages.scores import score_task

    about = TASKS[task]
    systems = {"baseline": texts.baseline} | {system: answers.texts for system, answers in found.items()}
    facts = {"task": task, "records": len(texts.ids), "primary": about.primary, "baseline_name": texts.baseline_name}
    return facts | score_task(about.metrics, texts.references, systems, samples, seed)


def analyse(task: str, texts: Texts, found: dict[str, Answers], samples: int, seed: int) -> Json:
    """analysis.json: of what stages/analysis.py knows, what can be said of the task and its models."""
    from stages.analysis import (
        calibration,
        confusion,
        likelihood,
        score_by,
        score_by_answer,
        source_words,
        words_before_answer,
    )
    from stages.scores import record_scores

    about, chance = TASKS[task], (samples, seed)
    systems = {system: answers.texts for system, answers in found.items()}
    details: Json = {
        "cut": found["pretrained"].cut,
        "by_length": score_by(source_words(texts.sources), about.primary, texts.references, systems, *chance),
    }
    if about.kind == "span":
        places = zip(texts.sources, texts.targets, texts.starts, strict=True)
        distances = [words_before_answer(*place) for place in places]
        details["by_evidence"] = score_by(distances, about.primary, texts.references, systems, *chance)
        details["by_answer"] = score_by_answer(about.primary, texts.references, systems, *chance)
    pretrained, scratch = (found[system].likelihood_N3 for system in SYSTEMS)
    if pretrained is not None and scratch is not None:
        details |= {
            "likelihood": likelihood(pretrained, scratch, *chance),
            "unknown_share": found["pretrained"].unknown,
        }
    judged = "accuracy" if about.kind == "class" else "exact_match"
    for system, answers in found.items():
        if answers.probabilities is not None:
            right = [score == 100 for score in record_scores(judged, texts.references, answers.texts)]
            details.setdefault("calibration", {})[system] = calibration(answers.probabilities, right)
    if about.kind == "class":
        details["confusion"] = confusion(texts.targets, systems["pretrained"])
    return details


def _numbers(summary: Json, details: Json) -> dict[str, float]:
    """What MLflow plots and compares: `chrf_pretrained`, `chrf_pretrained_low`, `bits_per_byte_difference_p`, …"""
    numbers = {
        f"{metric}_{system}{'' if key == 'score' else f'_{key}'}": value
        for metric, systems in (summary["metrics"] | details.get("likelihood", {})).items()
        for system, values in systems.items()
        for key, value in values.items()
    }
    errors = {f"calibration_error_{s}": found["error"] for s, found in details.get("calibration", {}).items()}
    return numbers | errors


def _attention(answering: "TextToText", sources: list[str]) -> str:
    """A picture of where the model looks while it answers the first source of a size that can be read."""
    from lightning_modules.attention_maps import attention_map
    from stages.report_plots import attention_svg

    text = next((source for source in sources if 6 <= len(source.split()) <= MAP_TOKENS // 2), sources[0])
    shown = attention_map(answering, text, MAP_TOKENS)
    return attention_svg(shown.looking, shown.seen, shown.weights_HLS)


def write_predictions(path: Path, texts: Texts, found: dict[str, Answers]) -> None:
    """A line a record: id, source, target, and each system's answer under its name.

    Where more texts than the target count as right, all are there as `references`.
    """
    systems = {"baseline": texts.baseline} | {system: answers.texts for system, answers in found.items()}
    with path.open("w", encoding="utf-8") as file:
        for number, name in enumerate(texts.ids):
            row: Json = {"id": name, "source": texts.sources[number], "target": texts.targets[number]}
            if isinstance(several := texts.references[number], list):
                row["references"] = several
            row |= {system: answers[number] for system, answers in systems.items()}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _course(folder: Path) -> Json:
    """Of which step the weights are that were kept, of how many, and their validation loss."""
    path = folder / "training.json"
    try:
        training: Json = json.loads(path.read_text(encoding="utf-8"))
        return {name: training[name] for name in ("steps", "best_step", "validation_loss")}
    except (OSError, ValueError, KeyError) as error:
        raise PipelineError(f"{path} is not what finetune writes ({error!r}): run finetune again") from error


def _join_curves(folders: dict[str, Path], output: Path) -> None:
    with output.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("init", "step", "train_loss", "validation_loss"))
        for system, folder in folders.items():
            with (folder / "curve.csv").open(newline="") as curve:
                for row in csv.DictReader(curve):
                    writer.writerow((system, row["step"], row["train_loss"], row["validation_loss"]))


def main(arguments: argparse.Namespace) -> None:
    """Runs the stage."""
    evaluate(load_params(), arguments.task)


if __name__ == "__main__":
    parser = stage_parser(__doc__)
    parser.add_argument("task", help="a task of params.yaml")
    run_stage(main, parser)
