import io
from pathlib import Path

from rich.console import Console
from toy_project import write_metrics

from flows.console import LiveListener, PlainListener, Recorder, show_failures, show_results
from flows.graph import Plan, Stage
from flows.progress import Progress
from flows.run_stage import Outcome, Result

PLAN = Plan(
    {
        name: Stage(name, f"about {name}", (), retries=0, timeout_seconds=None, devices=1)
        for name in ("prepare", "pretrain", "report")
    },
    frozenset({"pretrain"}),
)
FAILED = Result(Outcome.FAILED, 3.0, "params.yaml, line 3: [bad] value", tail=("one", "[two]"))


def tell(listener: LiveListener | PlainListener) -> Recorder:
    """A run in which one stage is unchanged, one fails on its way, and one is not run."""
    recorder = Recorder(listener)
    with listener:
        recorder.planned(PLAN)
        recorder.ended("prepare", Result(Outcome.UNCHANGED, 0.0))
        recorder.waiting("pretrain")
        recorder.started("pretrain")
        recorder.line("pretrain", "[brackets] are no markup")
        recorder.progress("pretrain", Progress("pretrain", 0.3, "360/1200, 9.0step/s"))
        recorder.ended("pretrain", FAILED)
        recorder.ended("report", Result(Outcome.NOT_RUN, 0.0, "pretrain has failed"))
        recorder.stopping("SIGINT")
    return recorder


def test_plain_lines_off_a_terminal() -> None:
    out = io.StringIO()
    recorder = tell(PlainListener(Console(file=out, width=60)))
    lines = [" ".join(line.split()) for line in out.getvalue().splitlines()]
    assert lines == [
        "prepare unchanged",
        "pretrain started",
        "pretrain pretrain 30% 360/1200, 9.0step/s",
        "pretrain failed in 3.0 s: params.yaml, line 3: [bad] value",
        "report not run: pretrain has failed",
        "stopping SIGINT; the stages save their work",
    ]
    assert recorder.results["pretrain"] is FAILED
    assert recorder.stopped_by == "SIGINT"


def test_a_table_on_a_terminal() -> None:
    out = io.StringIO()
    tell(LiveListener(Console(file=out, width=110, force_terminal=True, color_system=None)))
    last = out.getvalue().split("in all")[-2]
    for expected in ("unchanged", "failed", "0:03", "params.yaml, line 3: [bad] value", "pretrain has failed"):
        assert expected in last


def test_a_failure_shows_the_log_and_the_error() -> None:
    out = io.StringIO()
    show_failures(Console(file=out, width=40), {"prepare": Result(Outcome.RAN, 1.0), "pretrain": FAILED})
    assert out.getvalue().splitlines()[-3:] == [
        "  one",
        "  [two]",
        "error: pretrain: params.yaml, line 3: [bad] value",
    ]
    assert "prepare" not in out.getvalue()


def test_the_comparison(tmp_path: Path) -> None:
    write_metrics(tmp_path, "summarization")  # a run before, with another task
    write_metrics(tmp_path)
    (tmp_path / "reports" / "report.html").touch()
    out = io.StringIO()
    show_results(Console(file=out, width=120), tmp_path, None)
    for expected in (
        "pre-trained",
        "from scratch",
        "12.3 [11.0, 13.5]",
        "reports/report.html",
        "make ui",
        "make serve-flows",
    ):
        assert expected in out.getvalue()
    assert "summarization" not in out.getvalue()
    out = io.StringIO()
    show_results(Console(file=out, width=120), tmp_path, ["tokenize"])
    assert "pre-trained" not in out.getvalue()
    assert "make ui" in out.getvalue()
