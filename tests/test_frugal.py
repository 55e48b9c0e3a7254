"""Freed memory goes back: measured in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
import numpy as np, psutil
from stages.frugal import give_memory_back
if sys.argv[1] == "give back":
    give_memory_back()
np.ones(1 << 21)  # freed at once: glibc takes it that blocks up to this size should come from its heap
before = psutil.Process().memory_info().rss
blocks = [np.ones(1 << 16) for _ in range(200)]  # of 0.5 MB
held = psutil.Process().memory_info().rss
del blocks[:-1]  # the last holds the end of the heap
print((psutil.Process().memory_info().rss - before) / (held - before))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="speaks to glibc")
def test_what_is_freed_goes_back_though_something_behind_it_is_held() -> None:
    kept, given = (
        float(
            subprocess.run(
                [sys.executable, "-c", PROGRAM, how],
                cwd=Path(__file__).parents[1],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            ).stdout
        )
        for how in ("keep", "give back")
    )
    assert given < 0.1 < 0.9 < kept
