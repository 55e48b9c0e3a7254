"""What programs cost before they do anything: `python -m benchmarks.imports`. Two minutes.

Each prints its help, in a fresh process, in turns: as it is started, and with Python's collector left to itself
(`lightning_modules/collector.py`). Told are the seconds to its end, beside those of `import torch`.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

PROGRAMS = ("stages.pretrain", "stages.finetune", "flows.serve")
ROUNDS = 5


def commands() -> dict[tuple[str, str], list[str]]:
    """What is run, by what it is and how."""
    found = {("import torch", "as it is"): ["-c", "import torch"]}
    for program in PROGRAMS:
        # A program's package takes it for a library here, and leaves the collector alone.
        alone = f"import runpy, sys; sys.argv[1:] = ['--help']; runpy.run_module({program!r}, run_name='__main__')"
        found[program, "left to itself"] = ["-c", alone]
        found[program, "as it is"] = ["-m", program, "--help"]
    return found


def main() -> None:
    """Prints the table."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    times: dict[tuple[str, str], list[float]] = {key: [] for key in commands()}
    for _ in range(1 + ROUNDS):
        for key, command in commands().items():
            began = time.perf_counter()
            subprocess.run(  # noqa: S603
                [sys.executable, *command], cwd=Path(__file__).parents[1], check=True, stdout=subprocess.DEVNULL
            )
            times[key].append(time.perf_counter() - began)
    print(f"seconds, median of {ROUNDS}, after one that fills the caches")
    for (what, how), rounds in times.items():
        print(f"{what:16} {how:15} {statistics.median(rounds[1:]):5.2f}")


if __name__ == "__main__":
    main()
