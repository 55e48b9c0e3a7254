"""Test runs whose workers are killed, in processes of their own."""

import subprocess
import sys
from pathlib import Path

import pytest
from scheduling import BEGUN_ANEW

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


def run(folder: Path, files: int, deadly_file: int, always: bool, other: str = "") -> tuple[int, str, list[str]]:
    """(Exit status, output, what was begun) of a run in which a worker dies in the second test of a file.

    `other`: another name for that file.
    """
    for number in range(files):
        deadly = 1 if number == deadly_file else -1
        name = other if other and deadly == 1 else f"test_{number:02d}"
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


@pytest.mark.parametrize("deadly_file", [5, 11])  # while there are more, and when there is none
def test_after_a_death_everything_is_done_and_the_run_passes(tmp_path: Path, deadly_file: int) -> None:
    status, output, begun = run(tmp_path, 12, deadly_file, always=False)
    assert status == 0, output
    assert "28 passed, 1 skipped" in output
    assert f"a worker died at test_{deadly_file:02d}.py::test_some[1], which was begun again" in output
    assert len(begun) == 29
    assert len(set(begun)) == 28


def test_tests_that_build_on_one_another_are_all_begun_again(tmp_path: Path) -> None:
    name = BEGUN_ANEW[0].removesuffix(".py")
    status, output, begun = run(tmp_path, 4, 3, always=False, other=name)
    assert status == 0, output
    assert "11 passed, 1 skipped" in output
    assert [test for test in begun if test.startswith(name)] == [f"{name} {number}" for number in (0, 1, 0, 1, 2)]


def test_a_test_that_kills_its_worker_each_time_has_failed_and_the_others_are_done(tmp_path: Path) -> None:
    status, output, begun = run(tmp_path, 12, 5, always=True)
    assert status == 1, output
    assert "FAILED test_05.py::test_some[1]" in output
    assert "1 failed, 27 passed, 1 skipped" in output
    assert len(set(begun)) == 28
