"""A Prefect server with its UI that serves the deployments of prefect.yaml until Ctrl-C: `python -m flows.serve`.

prefect.yaml is the only list of deployments: `prefect deploy --all` puts the same ones on any other server, for a
worker of the process work pool to run. automations.yaml, likewise, is what the server does by itself: it calls a run
crashed that gives no sign of life. Costs a start of 10 s, then some 300 MB of memory for server and runner. Ends with
status 1 if its server does, for whatever supervises it to start both again.
"""

import argparse
import contextlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import psutil

from flows.server import GONE, prefect_server
from lightning_modules.errors import PipelineError

if TYPE_CHECKING:
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.deployments.runner import RunnerDeployment


HEARTBEAT_SECONDS = "30"  # between the signs of life of a run: the shortest that Prefect allows
RUN_SECONDS = 30.0  # for the stages of a run to save and end, which are given 20


def main() -> int:
    """The command line; gives the exit status."""
    argparse.ArgumentParser(
        "python -m flows.serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    root = Path.cwd()
    try:
        with prefect_server(root, when_gone=end) as url:
            os.environ.setdefault("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", HEARTBEAT_SECONDS)
            put_automations(root / "automations.yaml")
            print(f"Prefect UI: {url.removesuffix('/api')}  (Ctrl-C ends it, and the schedules with it)", flush=True)
            serve_deployments(root / "prefect.yaml")
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def end() -> NoReturn:
    """Ends this process, whose server has ended, with status 1; the stages of its runs are asked to first, and save.

    Prefect's own end would take a minute, to tell the server.
    """
    runs = psutil.Process().children()
    for run in runs:
        with contextlib.suppress(psutil.Error):
            run.terminate()
    until = time.monotonic() + RUN_SECONDS
    while any(_has_children(run) for run in runs) and time.monotonic() < until:
        time.sleep(0.2)
    for run in runs:  # it would try, for minutes, to tell the server
        with contextlib.suppress(psutil.Error):
            run.kill()
    print(f"error: {GONE}: start `make serve-flows` again", file=sys.stderr, flush=True)
    os._exit(1)


def _has_children(run: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(run.children())
    return False


def serve_deployments(file: Path) -> None:
    """Serves the deployments of a prefect.yaml, one run at a time, since they share the workspace; blocks."""
    from prefect import serve

    serve(*read_deployments(file), limit=1)


def put_automations(file: Path) -> None:
    """Puts the automations of a file, if there is one, on the server; one that is there and the same is left alone."""
    from prefect import get_client
    from prefect.events.schemas.automations import AutomationCore
    from ruamel.yaml import YAML

    written = YAML(typ="safe").load(file)["automations"] if file.is_file() else []
    with get_client(sync_client=True) as client:
        for automation in map(AutomationCore.model_validate, written):
            there = client.read_automations_by_name(automation.name)
            if not there:
                client.create_automation(automation)
            elif AutomationCore.model_validate(there[0].model_dump()) != automation:
                client.update_automation(there[0].id, automation)


def read_deployments(file: Path) -> "list[RunnerDeployment]":
    """The deployments of a prefect.yaml; their entrypoints are relative to the current folder."""
    from prefect.client.schemas.objects import ConcurrencyLimitConfig
    from prefect.deployments.runner import RunnerDeployment
    from ruamel.yaml import YAML

    if not file.is_file():
        raise PipelineError(f"no {file.name} in {file.parent}: run this in the project's root folder")
    return [
        RunnerDeployment.from_entrypoint(
            deployment["entrypoint"],
            name=deployment["name"],
            description=deployment.get("description"),
            parameters=deployment.get("parameters") or {},
            schedules=[_schedule(schedule) for schedule in deployment.get("schedules") or []],
            concurrency_limit=ConcurrencyLimitConfig(**deployment["concurrency_limit"]),
            tags=deployment.get("tags") or [],
            paused=False,  # the last `serve` has paused them when it ended
        )
        for deployment in YAML(typ="safe").load(file)["deployments"]
    ]


def _schedule(written: dict[str, Any]) -> "DeploymentScheduleCreate":
    """One entry of `schedules`: `cron`, `rrule` or `interval` (seconds), with options, as `prefect deploy` reads it."""
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.client.schemas.schedules import construct_schedule

    kinds = ("cron", "rrule", "interval", "anchor_date", "timezone")
    return DeploymentScheduleCreate(
        schedule=construct_schedule(**{key: value for key, value in written.items() if key in kinds}),
        **{key: value for key, value in written.items() if key in ("active", "parameters", "slug")},
    )


if __name__ == "__main__":
    sys.exit(main())
