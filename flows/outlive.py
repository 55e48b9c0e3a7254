"""A run goes on when whoever reads what it prints has died, as the worker that started it may. Imports no Prefect."""

import logging
from functools import partial

from rich.console import Console


def outlive_the_reader() -> None:
    """From now on Prefect's log falls silent on a terminal or pipe that is gone, where it would end the process.

    Its handler prints through a rich console, which by itself raises SystemExit there. To be called by a flow as it
    begins; what it logs is on the server in any case.
    """
    for name in ("", "prefect", "prefect.flow_runs", "prefect.task_runs"):
        for handler in logging.getLogger(name).handlers:
            console = getattr(handler, "console", None)
            if isinstance(console, Console):
                console.on_broken_pipe = partial(setattr, console, "quiet", True)  # type: ignore[method-assign]
