"""Searches values of params.yaml: `python -m flows.sweep recipes/sweeps/pretraining.yaml`, or `make sweep`.

Each trial runs in a workspace of its own, from the same cache; yours is not touched. One that validates worse than the
others at that step is ended early, one that fails is noted. Ctrl-C stops the sweep, and the same command goes on where
it was. Exit status: 0 done, 1 an input is wrong or nothing ran to its end, 130 or 143 stopped.
"""

import argparse
import os
import signal
import sys
from pathlib import Path

from flows.server import prefect_server
from flows.sweep_definition import read_sweep
from lightning_modules.errors import PipelineError

DEFAULT = "recipes/sweeps/pretraining.yaml"


def main() -> int:
    """The command line; gives the exit status."""
    parser = argparse.ArgumentParser(
        "python -m flows.sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", nargs="?", default=DEFAULT, help=f"what to search ({DEFAULT})")
    file = parser.parse_args().file
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        sweep = read_sweep(Path(file))
        print(f"{Path(file).stem}: {sweep.trials} trials of {sweep.stage}, by {sweep.metric}", flush=True)
        with prefect_server(Path.cwd()) as url:
            print(f"Prefect UI: {url.removesuffix('/api')}", flush=True)
            return _run_flow(file)
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _run_flow(file: str) -> int:
    """Runs the flow in this process, a line a trial; gives the exit status."""
    os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "CRITICAL"  # the trials are told here, the log is in the UI
    from flows.pipeline import flush
    from flows.sweep_flow import shown, sweep

    shown.set(lambda line: print(line, flush=True))
    try:
        state = sweep(file=file, return_state=True)
    finally:
        flush()
    if state.is_cancelled():
        print(f"stopped; {state.message}", file=sys.stderr)
        return 128 + (signal.SIGINT if "SIGINT" in (state.message or "") else signal.SIGTERM)
    if not state.is_completed():
        raise PipelineError(state.message or "the sweep has failed: see its log in the Prefect UI")
    return 0


if __name__ == "__main__":
    sys.exit(main())
