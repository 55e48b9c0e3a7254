"""What every stage's command line shares: progress bars, one clear line for a wrong input, exit statuses."""

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from lightning_modules.errors import Interrupted, PipelineError
from stages.stage_log import heard

EXIT_WRONG_INPUT = 1
EXIT_STOPPED = 128 + signal.SIGTERM  # what a shell shows for a process ended by SIGTERM
BEFORE_OVERRIDES = Path(".pipeline/params.before.yaml")  # params.yaml without a run's own values; there until it ends


def progress(
    items: Iterable[Any] | None = None, *, total: float | None = None, name: str, unit: str = "it"
) -> "tqdm[Any]":
    """A bar on a terminal; elsewhere (a log, the flow that reads this process) a line every two seconds."""
    interval = 0.1 if sys.stderr.isatty() else 2.0
    return tqdm(items, total=total, desc=name, unit=unit, unit_scale=True, mininterval=interval, dynamic_ncols=True)


def stage_parser(module_doc: str | None) -> argparse.ArgumentParser:
    """The command line of a stage: its own words from the module's docstring, and `--traceback`."""
    spec = sys.modules["__main__"].__spec__  # argparse of Python 3.11 would name the file instead
    parser = argparse.ArgumentParser(
        prog=f"python -m {spec.name}" if spec else None,
        description=module_doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--traceback", action="store_true", help="show where in the code an error arose")
    return parser


def run_stage(main: Callable[[argparse.Namespace], Any], parser: argparse.ArgumentParser) -> NoReturn:
    """Runs a stage's `main(arguments)` and exits: 0 done, 1 a wrong input, 2 wrong usage, 143 stopped on request.

    A `PipelineError` becomes one line on stderr. Any other exception is a defect and shows its traceback.
    """
    arguments = parser.parse_args()
    show_traceback = arguments.traceback or bool(os.environ.get("PIPELINE_TRACEBACK"))
    with heard():
        try:
            _refuse_overrides()
            main(arguments)
        except PipelineError as error:
            if show_traceback:
                traceback.print_exc()
            print(f"error: {error}", file=sys.stderr)
            sys.exit(EXIT_WRONG_INPUT)
        except (Interrupted, KeyboardInterrupt) as stop:
            print(f"stopped: {str(stop) or 'interrupted'}", file=sys.stderr)
            sys.exit(EXIT_STOPPED)
    sys.exit(0)


def _refuse_overrides() -> None:
    """DVC by itself would take the values of a run that was killed, or is at work, for those of params.yaml."""
    if "DVC_STAGE" not in os.environ or "PIPELINE_RUN" in os.environ or not BEFORE_OVERRIDES.is_file():
        return
    if BEFORE_OVERRIDES.read_bytes() != Path("params.yaml").read_bytes():
        raise PipelineError(
            "params.yaml has other values for the time of one run. Where that run is at work, wait for its end; where "
            "it was killed, the next `make demo` takes them back, or, with any later edit of yours: "
            f"mv {BEFORE_OVERRIDES} params.yaml"
        )
