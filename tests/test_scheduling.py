"""Test runs whose workers are killed, in processes of their own."""

import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
FILE = """
import os, signal
from pathlib import Path
import pytest

@pytest.mark.parametrize("number", range({count}))
def test_some(number):
    with Path("done").open("a") as file:
        file.write("{name} %d\\n" % number)
    if number == {deadly} and ({always} or not Path("died").exists()):
        Path("died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
"""


def run(folder: Path, files: int, deadly_file: int, always: bool) -> tuple[int, str, list[str]]:
    """(Exit status, output, what was begun) of a run in which a worker dies in the second test of a file."""
    for number in range(files):
        name, deadly = f"test_{number:02d}", 1 if number == deadly_file else -1
        count = 1 if number % 3 == 1 and number != deadly_file else 3
        (folder / f"{name}.py").write_text(FILE.format(count=count, name=name, deadly=deadly, always=always))
    command = [sys.executable, "-m", "pytest", "-p", "scheduling", "-p", "no:cacheprovider", "-rfs", "-c", "/dev/null"]
    command += ["--numprocesses", "2", "--dist", "loadfile", "--no-loadscope-reorder", "--rootdir", str(folder)]
    ended = subprocess.run(
        [*command, str(folder)],
        cwd=folder,
        env={"PYTHONPATH": str(TESTS), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return ended.returncode, ended.stdout, (folder / "done").read_text().splitlines()


@pytest.mark.parametrize("deadly_file", [0, 5, 11])
def test_after_a_death_everything_is_done_and_the_run_passes(tmp_path: Path, deadly_file: int) -> None:
    status, output, begun = run(tmp_path, 12, deadly_file, always=False)
    assert status == 0, output
    assert "28 passed, 1 skipped" in output
    assert f"a worker died at test_{deadly_file:02d}.py::test_some[1], which was begun again" in output
    assert len(begun) == 29
    assert len(set(begun)) == 28


def test_a_test_that_kills_its_worker_each_time_has_failed_and_the_others_are_done(tmp_path: Path) -> None:
    status, output, begun = run(tmp_path, 12, 5, always=True)
    assert status == 1, output
    assert "FAILED test_05.py::test_some[1]" in output
    assert "1 failed, 27 passed, 1 skipped" in output
    assert len(set(begun)) == 28
