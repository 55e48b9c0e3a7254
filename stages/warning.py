"""What goes wrong beside a stage's work, and must not cost it: tracking above all."""

import sys

from tqdm import tqdm

from stages.scrub import scrubbed


def warn(message: str) -> None:
    """One line on stderr, above the progress bars there."""
    tqdm.write(f"warning: {scrubbed(message)}", file=sys.stderr)
    sys.stderr.flush()
