"""dvc.lock: what DVC knows of each stage's last run. Reading it costs some milliseconds a stage."""

import time
from pathlib import Path
from typing import Any

TRIES, PAUSE = 20, 0.1  # how often a file that cannot be read is read again, and the seconds between
SETTLED = 1.0  # seconds after which a file that was written is whole


def locked_stages(root: Path) -> dict[str, Any]:
    """What the file in `root` has under each stage's name; nothing where it is not there, or not what DVC writes.

    DVC writes it in place while stages side by side read it. What is fresh is read until it stays the same.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    path, before = root / "dvc.lock", ""
    for _ in range(TRIES):
        try:
            fresh = time.time() - path.stat().st_mtime < SETTLED
            text = path.read_text(encoding="utf-8")
            stages: dict[str, Any] = YAML(typ="safe").load(text)["stages"]
            if text == before or not fresh:
                return stages
            before = text
        except OSError:
            return {}
        except (YAMLError, KeyError, TypeError, UnicodeDecodeError):
            before = ""
        time.sleep(PAUSE)
    return {}
