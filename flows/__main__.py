"""Runs the pipeline, or says that nothing has changed: `python -m flows`, which is what `make demo` calls.

DVC is asked first, which takes about a second; only if something has to run is Prefect imported, a local Prefect server
started (unless PREFECT_API_URL names one) and the flow run, shown here stage by stage. Ctrl-C stops it cleanly: the
same command goes on from the last checkpoint. Exit status: 0 done, 1 a stage failed, an input is wrong, another run
holds the workspace or the server has ended, 2 wrong usage, 130 stopped by Ctrl-C, 143 by SIGTERM or in the Prefect UI.
"""

import argparse
import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from flows.console import LiveListener, PlainListener, Recorder, show_failures, show_results
from flows.events import listener
from flows.graph import Plan, read_plan
from flows.run_stage import Outcome
from flows.server import ServerFailed, prefect_server
from flows.workspace import STATE, workspace
from lightning_modules.errors import PipelineError
from stages.params import require_ready

EXIT_FAILED = 1
EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_TERMINATED = 128 + signal.SIGTERM


def main(arguments: list[str] | None = None) -> int:
    """The command line; gives the exit status."""
    options = _parser().parse_args(arguments)
    console = Console(highlight=False)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        return _run(Path.cwd(), options.targets, dict(options.set), console)
    except PipelineError as error:
        if os.environ.get("PIPELINE_TRACEBACK"):
            traceback.print_exc()
        failed = isinstance(error, ServerFailed)
        line = "\n" * failed  # Prefect's own words on a server that fails end in no line
        print(f"{line}error: {error}", file=sys.stderr, flush=True)
        if failed:
            sys.stdout.flush()
            os._exit(EXIT_FAILED)  # not before all is told to a server that takes nothing: that can last for minutes
        return EXIT_FAILED
    except KeyboardInterrupt:
        return _say_stopped(EXIT_INTERRUPTED)


def _run(root: Path, targets: list[str] | None, overrides: dict[str, Any], console: Console) -> int:
    with workspace(root, overrides, tell=console.print), console.status("asking DVC what has changed"):
        plan = read_plan(root, targets)
        require_ready(root / "params.yaml", plan.stages)
    if not plan.stale:
        for name in plan.stages:
            console.print(f"{name:<28} unchanged")
        show_results(console, root, targets)
        return 0
    console.print(_announcement(plan))
    with prefect_server(root) as url:
        console.print(f"Prefect UI: {url.removesuffix('/api')}")
        return _run_flow(root, targets, overrides, console)


def _run_flow(root: Path, targets: list[str] | None, overrides: dict[str, Any], console: Console) -> int:
    """Runs the flow in this process and shows it; gives the exit status."""
    os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "CRITICAL"  # the stages are shown here, the log is in the UI
    from httpx import HTTPError

    from flows.pipeline import flush, pipeline

    with contextlib.ExitStack() as unsent:
        unsent.callback(flush)
        try:
            with _shown(console) as recorder:
                state = pipeline(targets=targets, overrides=overrides, return_state=True)
        except HTTPError as error:
            unsent.pop_all()  # it would wait for nobody
            said = str(error).partition("\n")[0]
            raise ServerFailed(f"the Prefect server fails ({said}): see {STATE}/prefect/server.log") from error
    show_failures(console, recorder.results)
    if recorder.stopped_by or (state.is_cancelled() and state.name != "Skipped"):
        return _say_stopped(EXIT_INTERRUPTED if recorder.stopped_by == "SIGINT" else EXIT_TERMINATED)
    if not state.is_completed():
        if not any(result.outcome is Outcome.FAILED for result in recorder.results.values()):
            raise PipelineError(state.message or "the flow has failed: see its log in the Prefect UI")
        return EXIT_FAILED
    show_results(console, root, targets)
    return 0


@contextlib.contextmanager
def _shown(console: Console) -> Iterator[Recorder]:
    with LiveListener(console) if console.is_terminal else PlainListener(console) as shown:
        recorder = Recorder(shown)
        token = listener.set(recorder)
        try:
            yield recorder
        finally:
            listener.reset(token)


def _announcement(plan: Plan) -> str:
    unchanged = len(plan.stages) - len(plan.stale)
    return f"{len(plan.stale)} of {len(plan.stages)} stages have changed" + (
        f", {unchanged} so far not" if unchanged else ""
    )


def _say_stopped(status: int) -> int:
    print("stopped; the same command goes on from the last checkpoint", file=sys.stderr)
    return status


def _terminate(*_: object) -> NoReturn:
    sys.exit(_say_stopped(EXIT_TERMINATED))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m flows", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--targets",
        nargs="+",
        metavar="STAGE",
        help="only these stages and what they need; `finetune` means every `finetune@…`",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        type=_override,
        metavar="KEY=VALUE",
        help="another value for a key of params.yaml, in this run only: --set pretrain.learning_rate=1e-3 --set seed=2",
    )
    return parser


def _override(text: str) -> tuple[str, Any]:
    """Reads `pretrain.learning_rate=1e-3`: a dotted key and a value as YAML writes it."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    key, equals, value = text.partition("=")
    if not equals or not key:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    try:
        return key.strip(), YAML(typ="safe").load(value)
    except YAMLError:
        raise argparse.ArgumentTypeError(f"{value!r} is not a value as YAML writes it") from None


if __name__ == "__main__":
    sys.exit(main())
