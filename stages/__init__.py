"""What each step does: one program a DVC stage, `python -m stages.NAME`."""

import os

from lightning_modules.collector import collect_rarely

os.environ.setdefault("DO_NOT_TRACK", "true")  # MLflow and the hub's client would report to their makers
collect_rarely()
