"""What a sweep tells: a line a trial, the best values as params.yaml has them, a table, pictures. Pictures cost 2 s."""

import csv
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flows.sweep_definition import Sweep
from flows.sweep_search import COMPLETE, FAILED, Search, Trial
from stages.outputs import whole_file

RESULTS = Path("reports/sweeps")
PICTURES = {"history.svg": "plot_optimization_history", "curves.svg": "plot_intermediate_values"}
PICTURES |= {"importance.svg": "plot_param_importances"}


def trial_line(trial: Trial, best: Trial | None) -> str:
    """One line for a trial that has ended."""
    values = " ".join(f"{key}={value}" for key, value in trial.values.items())
    told = trial.state if trial.value is None else f"{trial.state} {trial.value:.4f}"
    told += f": {trial.reason}" if trial.state == FAILED else ""
    mark = "  the best so far" if best is not None and best.number == trial.number else ""
    return f"trial {trial.number:<3} {trial.seconds:6.0f} s  {values}  {told}{mark}"


def best_text(sweep: Sweep, best: Trial) -> str:
    """The best trial's values, as lines for params.yaml."""
    from ruamel.yaml import YAML

    table: dict[str, Any] = {}
    for key, value in best.values.items():
        *path, last = key.split(".")
        section = table
        for part in path:
            section = section.setdefault(part, {})
        section[last] = value
    out = io.StringIO()
    YAML().dump(table, out)
    fixed = "".join(f"; {key}: {value}" for key, value in sweep.fixed.items())
    return f"# trial {best.number}: {sweep.metric} {best.value:.4f}{fixed}\n{out.getvalue()}"


def closing_lines(sweep: Sweep, name: str, ended: Sequence[Trial], best: Trial | None) -> list[str]:
    """What is said when all trials have ended."""
    counts = [f"{sum(trial.state == state for trial in ended)} {state}" for state in (COMPLETE, "pruned", FAILED)]
    lines = [f"{name}: {len(ended)} trials, {', '.join(counts)}"]
    if best is None:
        return [*lines, "no trial ran to its end"]
    written = " ".join(f"--set {key}={value}" for key, value in best.values.items())
    return [
        *lines,
        *best_text(sweep, best).splitlines(),
        f"to go on with them: write them into params.yaml, or make demo ARGS='{written}'",
        f"table and pictures: {RESULTS / name}",
    ]


def write_results(sweep: Sweep, folder: Path, search: Search) -> list[Path]:
    """Writes trials.csv, best.yaml and the pictures that there are trials enough for; gives their paths."""
    ended, best = search.ended(), search.best()
    files = [folder / "trials.csv"]
    with whole_file(files[0]) as path, path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["trial", "state", sweep.metric, "seconds", *sweep.space, "reason"])
        for trial in ended:
            values = [trial.values.get(key, "") for key in sweep.space]
            writer.writerow([trial.number, trial.state, trial.value, round(trial.seconds, 1), *values, trial.reason])
    if best is not None:
        files.append(folder / "best.yaml")
        with whole_file(files[-1]) as path:
            path.write_text(best_text(sweep, best), encoding="utf-8")
        files += _draw(sweep, folder, search)
    return files


def _draw(sweep: Sweep, folder: Path, search: Search) -> list[Path]:
    """Optuna's own pictures. Importances (PED-ANOVA, Watanabe et al. 2023) need several trials that differ."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from optuna.importance import PedAnovaImportanceEvaluator
    from optuna.visualization import matplotlib as pictures

    drawn = []
    for name, function in PICTURES.items():
        options: dict[str, Any] = {} if name == "curves.svg" else {"target_name": sweep.metric}
        if name == "importance.svg":
            options["evaluator"] = PedAnovaImportanceEvaluator()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that these functions may change
            try:
                getattr(pictures, function)(search.study, **options)
            except (ValueError, RuntimeError):  # too few trials, or all alike
                continue
            finally:
                figure = plt.gcf()
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / name, bbox_inches="tight")
        plt.close("all")
        drawn.append(folder / name)
    return drawn
