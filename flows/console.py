"""What `make demo` shows: a line a stage with its bar on a terminal, plain lines elsewhere; at the end the comparison.

Never imports Prefect; rich costs 0.1 s.
"""

import threading
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from flows.events import Listener
from flows.graph import Plan
from flows.progress import Progress, ProgressThinner
from flows.run_stage import Outcome, Result
from stages.report_table import comparison_table, table_text

STYLES = {
    Outcome.RAN: "green",
    Outcome.UNCHANGED: "dim",
    Outcome.FAILED: "bold red",
    Outcome.STOPPED: "yellow",
    Outcome.NOT_RUN: "dim",
}
LOG_LINES_SHOWN = 20
PLAIN_SECONDS = 10.0


@dataclass
class Row:
    """What is known of one stage."""

    state: str = ""
    style: str = "dim"
    began: float | None = None
    seconds: float = 0.0
    share: float | None = None
    message: str = ""


class LiveListener(Listener):
    """A table that is redrawn four times a second. Use as a context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._rows: dict[str, Row] = {}
        self._began = time.monotonic()
        self._note = "reading the stages"
        self._live = Live(get_renderable=self._draw, console=console, refresh_per_second=4, transient=False)

    def __enter__(self) -> "LiveListener":
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._note = ""
        self._live.stop()

    def planned(self, plan: Plan) -> None:
        """Shows all stages at once."""
        self._rows = {name: Row(message=stage.description) for name, stage in plan.stages.items()}
        self._note = ""

    def waiting(self, stage: str) -> None:
        """Waits for a device."""
        self._rows[stage].state = "waiting"

    def started(self, stage: str) -> None:
        """Starts the stage's clock."""
        row = self._rows[stage]
        row.state, row.style, row.began, row.share = "running", "cyan", time.monotonic(), None

    def line(self, stage: str, text: str) -> None:
        """Shows the last line of the log."""
        self._rows[stage].message = text

    def progress(self, stage: str, progress: Progress) -> None:
        """Moves the bar."""
        row = self._rows[stage]
        row.share, row.message = progress.share, f"{progress.name}: {progress.text}" if progress.name else progress.text

    def ended(self, stage: str, result: Result) -> None:
        """Shows what happened, and how long it took."""
        row = self._rows[stage]
        row.state, row.style, row.began = str(result.outcome), STYLES[result.outcome], None
        row.seconds, row.share, row.message = result.seconds, None, result.message

    def stopping(self, why: str) -> None:
        """Says that the end is near."""
        self._note = "stopping: the stages save their work"

    def _draw(self) -> Group:
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
        for justify in ("left", "left", "left", "right"):
            table.add_column(justify=justify, no_wrap=True)  # type: ignore[arg-type]
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        for name, row in list(self._rows.items()):
            seconds = row.seconds if row.began is None else time.monotonic() - row.began
            bar = ProgressBar(total=1.0, completed=row.share, width=20) if row.share is not None else Text("")
            state = Text(row.state, style=row.style)
            table.add_row(name, state, bar, _clock(seconds), Text(row.message, style="dim" if not row.began else ""))
        total = f"{_clock(time.monotonic() - self._began)} in all"
        return Group(table, Text(f"{total}  {self._note}", style="dim"))


class PlainListener(Listener):
    """A line when a stage starts, one each ten seconds of progress, one when it ends."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lock = threading.Lock()
        self._thinners: dict[str, ProgressThinner] = {}

    def __enter__(self) -> "PlainListener":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def started(self, stage: str) -> None:
        """A line."""
        self._thinners[stage] = ProgressThinner(step=2.0, seconds=PLAIN_SECONDS)
        self._say(stage, "started")

    def progress(self, stage: str, progress: Progress) -> None:
        """A line now and then."""
        if self._thinners[stage].passes(progress):
            share = "" if progress.share is None else f"{progress.share:.0%} "
            self._say(stage, f"{progress.name} {share}{progress.text}".strip())

    def ended(self, stage: str, result: Result) -> None:
        """A line with the time it took."""
        took = f" in {result.seconds:.1f} s" if result.seconds else ""
        self._say(stage, f"{result.outcome}{took}{': ' if result.message else ''}{result.message}")

    def stopping(self, why: str) -> None:
        """A line."""
        self._say("stopping", f"{why}; the stages save their work")

    def _say(self, stage: str, text: str) -> None:
        with self._lock:
            self._console.print(f"{stage:<28} {text}", highlight=False, markup=False, soft_wrap=True)


class Recorder(Listener):
    """Hands everything on to another listener, and keeps how the stages and the run have ended."""

    def __init__(self, shown: Listener) -> None:
        self._shown = shown
        self.results: dict[str, Result] = {}
        self.stopped_by: str | None = None
        self.planned, self.waiting, self.started = shown.planned, shown.waiting, shown.started  # type: ignore[method-assign]
        self.line, self.progress = shown.line, shown.progress  # type: ignore[method-assign]

    def ended(self, stage: str, result: Result) -> None:
        """Keeps the result."""
        self.results[stage] = result
        self._shown.ended(stage, result)

    def stopping(self, why: str) -> None:
        """Keeps the reason."""
        self.stopped_by = why
        self._shown.stopping(why)


def show_failures(console: Console, results: dict[str, Result]) -> None:
    """The last lines of each failed stage's log, then its error."""
    for stage, result in results.items():
        if result.outcome is Outcome.FAILED:
            console.print(f"\nThe last lines of {stage}:", highlight=False)
            for line in result.tail[-LOG_LINES_SHOWN:]:
                console.print(f"  {line}", highlight=False, markup=False, style="dim", soft_wrap=True)
            console.print(
                f"error: {stage}: {result.message}", highlight=False, markup=False, style="bold red", soft_wrap=True
            )


def show_results(console: Console, root: Path, targets: list[str] | None) -> None:
    """What pre-training bought, where the report is, and how to open the two user interfaces.

    After a run of some stages only, what stands in the reports may be of other parameters, and is not shown.
    """
    if not targets and (rows := comparison_table(root / "reports")):
        console.print("\nOn the test split: score and 95 % interval\n")
        console.print(table_text(rows), markup=False, soft_wrap=True)
        console.print()
        for row in rows:
            if row.primary:
                console.print(f"{row.task_name}: {row.verdict()}", markup=False, soft_wrap=True)
        console.print()
    if not targets and (root / "reports" / "report.html").is_file():
        console.print("report:        reports/report.html")
    console.print("MLflow UI:     make ui            (runs, metrics, models)")
    console.print("Prefect UI:    make serve-flows   (flow runs, logs, schedules)")


def _clock(seconds: float) -> str:
    if seconds == 0:
        return ""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
