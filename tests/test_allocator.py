"""The C allocator: memory that was freed comes back without the system clearing each of its pages again."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_modules.allocator import keep_memory

REPOSITORY = Path(__file__).parents[1]
ROUNDS, MEGABYTES = 20, 64
PROGRAM = f"""
import resource, sys
import torch
from lightning_modules.allocator import keep_memory

if sys.argv[1] == "keep":
    keep_memory()
for round in range(2 * {ROUNDS}):
    if round == {ROUNDS}:  # the first ask the system for memory either way
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones({MEGABYTES} * 2**20 // 4)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    command = [sys.executable, "-c", PROGRAM, how]
    return int(subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_memory_that_was_freed_is_not_mapped_anew() -> None:
    """Counted in page faults; pages may be as large as 2 MB."""
    assert faults("give back") >= ROUNDS * MEGABYTES / 2
    assert faults("keep") < ROUNDS


def test_elsewhere_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr("ctypes.CDLL", None)  # it would fail to be called
    keep_memory()
