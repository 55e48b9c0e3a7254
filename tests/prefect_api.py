"""What a Prefect server knows, asked through its API as any other program would."""

import json
import time
import urllib.error
import urllib.request
from typing import Any

from processes import eventually


def post(url: str, body: dict[str, Any] | None = None, tries: int = 20) -> Any:
    """The answer; asked again while the server says that its database is busy, as Prefect's own client does."""
    request = urllib.request.Request(url, json.dumps(body or {}).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request) as reply:
            return json.load(reply)
    except urllib.error.HTTPError as error:
        if error.code != 503 or tries == 1:
            raise
    time.sleep(1.0)
    return post(url, body, tries - 1)


def read_run(api: str, run: str) -> dict[str, Any]:
    return dict(post(f"{api}/flow_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})[0])


def task_runs(api: str, run: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The task runs by name, once all have ended: Prefect records their states a moment later than they happen."""

    def ended() -> dict[str, dict[str, Any]]:
        found = post(f"{api}/task_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})
        final = all(task["state_type"] in ("COMPLETED", "FAILED", "CANCELLED", "CRASHED") for task in found)
        return {task["name"]: task for task in found} if final else {}

    return eventually(ended)


def states(api: str, run: dict[str, Any]) -> dict[str, str]:
    return {name: task["state_name"] for name, task in task_runs(api, run).items()}


def log_of(api: str, **which: str) -> list[str]:
    """The log lines of a run: `flow_run_id` or `task_run_id`."""
    query = {"logs": {name: {"any_": [value]} for name, value in which.items()}, "sort": "TIMESTAMP_ASC"}
    return [line["message"] for line in post(f"{api}/logs/filter", query)]
