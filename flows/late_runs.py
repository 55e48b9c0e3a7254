"""Flow runs that should have begun and have not, and why: asked of a Prefect server by plain HTTP, in 2 s at most.

Prefect itself shows such runs as Late or Pending and says no more. Imports no Prefect.
"""

import base64
import json
import os
import shlex
import time
import urllib.request
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

from lightning_modules.errors import PipelineError

SECONDS = 2.0  # for all questions together
LATE_AFTER = timedelta(seconds=30)
MOST = 50  # runs asked for


def late_runs(api: str) -> list[str]:
    """A line for each work pool that runs wait for. Raises PipelineError where the server at `api` does not answer."""
    until = time.monotonic() + SECONDS
    before = datetime.now(UTC) - LATE_AFTER
    state = {"type": {"any_": ["SCHEDULED", "PENDING"]}}
    wanted = {"flow_runs": {"state": state, "expected_start_time": {"before_": before.isoformat()}}, "limit": MOST}
    pools = defaultdict(list)
    for run in _ask(api, "flow_runs/filter", wanted | {"sort": "EXPECTED_START_TIME_ASC"}, until):
        again = run["next_scheduled_start_time"]  # of one that waits to be retried; none where it is pending
        if again is None or datetime.fromisoformat(again) < before:
            pools[run["work_pool_name"]].append(run)
    return [_line(api, pool, runs, until) for pool, runs in pools.items()]


def _line(api: str, pool: str | None, runs: list[dict[str, Any]], until: float) -> str:
    since = datetime.fromisoformat(runs[0]["expected_start_time"]).astimezone()
    who = f"{len(runs)} flow runs wait" if len(runs) > 1 else f"the flow run {runs[0]['name']} waits"
    waits = f"{who} since {since:%Y-%m-%d %H:%M:%S}"
    if pool is None:
        return f"{waits} for the process that serves them: make serve-flows"
    online = {"workers": {"status": {"any_": ["ONLINE"]}}}
    if _ask(api, f"work_pools/{quote(pool)}/workers/filter", online, until):
        return f"{waits} for work pool {pool}, which a worker polls: it may be paused, or at its limit of runs"
    return f"{waits}, as no worker polls work pool {pool}: prefect worker start --pool {shlex.quote(pool)}"


def _ask(api: str, path: str, body: dict[str, Any], until: float) -> list[dict[str, Any]]:
    headers = {"Content-Type": "application/json"}
    if login := os.environ.get("PREFECT_API_AUTH_STRING"):
        headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
    elif key := os.environ.get("PREFECT_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    if not api.startswith(("http://", "https://")):
        raise PipelineError(f"PREFECT_API_URL {api!r} is not a web address")
    request = urllib.request.Request(f"{api.rstrip('/')}/{path}", json.dumps(body).encode(), headers)  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=max(until - time.monotonic(), 0.1)) as answer:  # noqa: S310
            found: list[dict[str, Any]] = json.load(answer)
    except (OSError, ValueError) as error:
        raise PipelineError(f"the Prefect server of PREFECT_API_URL does not answer ({error})") from error
    return found
