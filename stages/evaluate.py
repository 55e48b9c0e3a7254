"""Scores the pre-trained and the from-scratch model of a task, and a trivial baseline, on the same test records.

Reads data/prepared/TASK/test.parquet and both models; writes reports/tasks/TASK: metrics.json with 95 % intervals,
predictions.jsonl, curve.csv, attention.svg. Decoding takes the time: about 400 short texts a second on one core at demo
size.
"""

import argparse
import csv
import json
from pathlib import Path

from lightning_modules.errors import PipelineError
from stages.console import progress, run_stage, stage_parser
from stages.outputs import whole_directory
from stages.params import Params, load_params
from stages.tasks import TASKS, Record

MAP_TOKENS = 40  # most tokens on a side of the attention map
SYSTEMS = {"pretrained": "", "scratch": "-scratch"}  # name of a system → ending of its model's folder


def evaluate(params: Params, task: str) -> None:
    """Writes reports/tasks/TASK. Raises PipelineError where the test split is empty or the task unknown."""
    import torch

    from lightning_modules.text_to_text import TextToText
    from stages.scores import score_task
    from stages.tracking import stage_run

    if task not in params.tasks:
        raise PipelineError(f"no task {task!r} in params.yaml, which has {', '.join(params.tasks)}")
    torch.set_num_threads(params.evaluate.threads)
    records = _test_records(task, params.evaluate.max_records)
    about = TASKS[task]
    sources, references = [about.source_text(r) for r in records], [about.target_text(r) for r in records]
    folders = {system: Path("models") / f"{task}{ending}" for system, ending in SYSTEMS.items()}
    test_file = Path(f"data/prepared/{task}/test.parquet")
    settings = {"seed": params.seed, "evaluate": params.evaluate.model_dump(), "records": len(records)}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with stage_run(f"evaluate@{task}", params=settings, inputs=[test_file, *folders.values()]) as run:
        answers = {"baseline": [about.baseline(r) for r in records]}
        for system, folder in folders.items():
            with progress(total=len(records), name=f"{task} {system}", unit="text") as bar:
                answers[system] = TextToText.load(folder, device).generate(sources, done=bar.update)
        scores = score_task(about.metrics, references, answers, params.evaluate.bootstrap_samples, params.seed)
        summary = {
            "task": task,
            "records": len(records),
            "primary": about.primary,
            "baseline_name": about.baseline_name,
            **scores,
        }
        with whole_directory(Path("reports/tasks") / task) as output:
            (output / "metrics.json").write_text(json.dumps(summary, indent=2) + "\n")
            with (output / "predictions.jsonl").open("w", encoding="utf-8") as file:
                for i, record in enumerate(records):
                    row = {"id": record["id"], "source": sources[i], "target": references[i]}
                    row |= {system: texts[i] for system, texts in answers.items()}
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
            _join_curves(folders, output / "curve.csv")
            (output / "attention.svg").write_text(_attention(folders["pretrained"], sources, device), encoding="utf-8")
        run.log_metrics(
            {
                f"{metric}_{system}{'' if key == 'score' else f'_{key}'}": value
                for metric, systems in scores["metrics"].items()
                for system, values in systems.items()
                for key, value in values.items()
            },
            step=0,
        )
        for name in ("metrics.json", "predictions.jsonl", "attention.svg"):
            run.log_artifact(Path("reports/tasks") / task / name)


def _attention(folder: Path, sources: list[str], device: str) -> str:
    """A picture of where the model looks while it answers the first source of a size that can be read."""
    from lightning_modules.attention_maps import attention_map
    from lightning_modules.text_to_text import TextToText
    from stages.report_plots import attention_svg

    text = next((source for source in sources if 6 <= len(source.split()) <= MAP_TOKENS // 2), sources[0])
    shown = attention_map(TextToText.load(folder, device), text, MAP_TOKENS)
    return attention_svg(shown.looking, shown.seen, shown.weights_HLS)


def _test_records(task: str, most: int) -> list[Record]:
    """The first `most` test records; they are sorted by a hash of their content, so these are a random choice."""
    import pyarrow.parquet as pq

    path = Path(f"data/prepared/{task}/test.parquet")
    try:
        records: list[Record] = pq.read_table(path).to_pylist()
    except OSError as error:
        raise PipelineError(f"{path} cannot be read ({error}): run the prepare stage again") from error
    if not records:
        raise PipelineError(f"{path} holds no record: give the task more data, or raise prepare.test_share")
    return records[:most] if most else records


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
