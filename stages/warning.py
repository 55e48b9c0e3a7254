"""What goes wrong beside a stage's work, and must not cost it: tracking above all."""

import sys

from stages.scrub import scrubbed


def warn(message: str) -> None:
    """One line on stderr."""
    print(f"warning: {scrubbed(message)}", file=sys.stderr, flush=True)
