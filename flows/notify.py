"""Tells a webhook of runs that failed, such as a chat program's or a pager's: one request each. Imports Prefect.

Its address, often a secret, comes from the environment alone: PIPELINE_WEBHOOK, where the flow runs.
"""

import os
from typing import Any

import httpx
from prefect import Flow
from prefect.client.schemas.objects import FlowRun, State
from prefect.logging.loggers import flow_run_logger
from prefect.utilities.urls import url_for

WEBHOOK = "PIPELINE_WEBHOOK"
PATIENCE = 10.0  # seconds


def tell_webhook(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Posts `text`, which Slack and its like show, and the same in parts.

    A webhook that is away is a line in the run's log, and nothing else. Of a run within another one only that tells.
    """
    address = os.environ.get(WEBHOOK)
    if not address or flow_run.parent_task_run_id is not None:
        return
    url = url_for(flow_run) or ""
    message = {
        "text": f"{flow.name} {flow_run.name}: {state.name}: {state.message or 'no reason was given'} {url}".rstrip(),
        "flow_run": flow_run.name,
        "state": state.name,
        "message": state.message,
        "url": url,
    }
    try:
        httpx.post(address, json=message, timeout=PATIENCE).raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = (
            f"status {error.response.status_code}" if isinstance(error, httpx.HTTPStatusError) else type(error).__name__
        )
        flow_run_logger(flow_run, flow).warning("%s could not be told: %s", WEBHOOK, reason)  # its address stays secret
