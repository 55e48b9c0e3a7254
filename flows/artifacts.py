"""The artifacts of a flow run in the Prefect UI: stages, metrics, MLflow runs. Importing it imports Prefect (2–3 s)."""

import json
from collections.abc import Iterator
from pathlib import Path

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from flows.graph import Plan
from flows.run_stage import Outcome, Result
from flows.workspace import STATE
from stages.report_table import comparison_table
from stages.tracking_store import run_pages


def publish(root: Path, run: str, plan: Plan, results: dict[str, Result], targets: list[str] | None) -> None:
    """Writes the artifacts of the current flow run, those that there is something to say in.

    The metrics are shown after a whole run only: else what stands in the reports may be of another one.
    """
    create_table_artifact(
        key="stages",
        description="What became of each stage",
        table=[
            {
                "stage": name,
                "what happened": str(results[name].outcome) if name in results else "not run",
                "seconds": round(results[name].seconds, 1) if name in results else 0.0,
                "message": results[name].message if name in results else "",
            }
            for name in plan.stages
        ],
    )
    whole = not targets and all(result.outcome in (Outcome.RAN, Outcome.UNCHANGED) for result in results.values())
    if whole and (rows := comparison_table(root / "reports")):
        create_table_artifact(
            key="metrics",
            description="On the test split: score and 95 % interval",
            table=[
                {
                    "task": row.task_name,
                    "metric": row.metric_name,
                    "records": row.records,
                    "pre-trained": str(row.pretrained),
                    "from scratch": str(row.scratch),
                    "trivial baseline": f"{row.baseline} ({row.baseline_name})",
                    "pre-training bought": row.difference.signed(),
                }
                for row in rows
            ],
        )
    if links := list(_mlflow_links(root, run)):
        lines = "\n".join(f"| {stage} | [{url}]({url}) |" for stage, url in links)
        create_markdown_artifact(
            key="mlflow-runs",
            description="The MLflow run of each stage; `make ui` opens MLflow",
            markdown=f"| stage | MLflow run |\n| --- | --- |\n{lines}\n",
        )
    if page := run_pages(root).get("report"):
        create_link_artifact(
            key="report",
            link=f"{page}/artifacts/report.html",
            link_text="report.html",
            description="The report, kept with its run in MLflow",
        )


def _mlflow_links(root: Path, run: str) -> Iterator[tuple[str, str]]:
    """Stage and URL of each MLflow run that the stages of the pipeline run `run` have written down."""
    for file in sorted((root / STATE / "runs" / run).glob("*.json")):
        written = json.loads(file.read_text(encoding="utf-8"))
        yield written["stage"], written["url"]
