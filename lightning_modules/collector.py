"""Python's garbage collector, which looks through all that was imported again and again, and once more at the end.

Nothing of that is ever garbage. Of the 5.5 s of `python -m stages.pretrain --help` it took 1.7 (two slow cores of an
AMD EPYC, 2026-11-30, `python -m benchmarks.imports`).
"""

import atexit
import gc
import sys

YOUNG = 10_000  # new objects after which it looks through them; Python's own choice is 700 to 2,000


def collect_rarely() -> None:
    """For a program, called by its package before anything else is imported. Does nothing where that is a library."""
    if sys.argv[0] == "-m":  # so `python -m package.module` has it while it imports the package
        gc.set_threshold(YOUNG)
        atexit.register(gc.freeze)  # what there is then need not be taken apart in the right order
