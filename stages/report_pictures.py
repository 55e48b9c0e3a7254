"""Every picture of the report by its name: what reports/plots holds (`dvc plots`, MLflow) and the page shows."""

from typing import Any

from stages.report_plots import (
    COLOURS,
    LABELS,
    Curve,
    buckets_svg,
    calibration_svg,
    confusion_svg,
    curves_svg,
    scores_svg,
)
from stages.report_table import Row

Json = dict[str, Any]
LENGTH, EVIDENCE = "words of the source", "words of the context before the answer"


def pictures(
    rows: list[Row], curves: dict[str, list[dict[str, str]]], analysis: dict[str, Json], attention: dict[str, str]
) -> dict[str, str]:
    """Name → SVG. `curves` has "pretraining" and the tasks, the others the tasks."""
    found = {"scores": scores_svg([row for row in rows if row.primary])}
    for name, points in curves.items():
        if drawn := _curves(name, points):
            found[f"curve_{name}"] = curves_svg(drawn)
    primary = {row.task: row.metric_name for row in rows if row.primary}
    for task, details in analysis.items():
        for kind, unit in (("length", LENGTH), ("evidence", EVIDENCE)):
            if buckets := details.get(f"by_{kind}"):
                found[f"{kind}_{task}"] = buckets_svg(buckets, primary[task], unit)
        if "calibration" in details:
            found[f"calibration_{task}"] = calibration_svg(details["calibration"])
        if "confusion" in details:
            found[f"confusion_{task}"] = confusion_svg(**details["confusion"])
    return found | {f"attention_{task}": picture for task, picture in attention.items()}


def _curves(name: str, rows: list[dict[str, str]]) -> list[Curve]:
    """Training and validation losses; of a task, those of both models."""
    found = []
    for system in ("pretrained", "scratch"):
        mine = [row for row in rows if row.get("init", "pretrained") == system]
        for column, faint in (("train_loss", True), ("validation_loss", False)):
            points = [(float(row["step"]), float(row[column])) for row in mine if row.get(column)]
            words = "training" if faint else "validation"
            label = words if name == "pretraining" else f"{LABELS[system]}, {words}"
            if points:
                found.append(Curve(label, points, COLOURS[system], faint))
    return found
