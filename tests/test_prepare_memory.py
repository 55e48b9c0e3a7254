"""Files of any size: what preparing holds in memory does not grow with them, in whatever format they come."""

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parents[1]
SIZES = (4_000_000, 32_000_000)  # characters of text in a file
# Of the memory that is the process's own, not that of mapped files, which the system takes back when it needs it.
PROGRAM = """
import sys, threading, time
from pathlib import Path
sys.path.insert(0, "tests")
import preparing, stages.prepare, stages.readers, stages.splits
from stages.readers import READERS

# What is held of large data is held of small data here: runs, a part of each while they are merged, row groups.
stages.splits._RUN_CHARACTERS, stages.splits._HELD_CHARACTERS, stages.splits.ROW_GROUP = 1_000_000, 8000, 64
stages.readers._LONGEST = 1 << 18
peak, done = 0, threading.Event()

def watch():
    global peak
    while peak == 0 or not done.wait(0.003):
        peak = max(peak, *(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")))

root, entry = Path(sys.argv[1]), eval(sys.argv[2])
watcher = threading.Thread(target=watch, daemon=True)
watcher.start()
if sys.argv[3] == "prepare":
    preparing.run(root, {"pretraining": [entry]}, mask_personal=["email", "phone", "ip", "key"])
else:
    [file] = (root / "raw/mine").iterdir()
    from pydantic import TypeAdapter
    from stages.params_data import Entry
    entry = TypeAdapter(Entry).validate_python(entry)
    for _ in READERS[entry.reader].read(entry, file):
        pass
done.set()
watcher.join()
print(peak)
"""
WHOLE = {"source": "mine", "reader": "text", "split": "file"}
TEXTS = {"source": "mine", "reader": "text", "split": "paragraph"}
TABLE = {"source": "mine", "reader": "table", "columns": {"text": "body"}}


def documents(size: int) -> list[str]:
    """Documents of 1,000 characters, each another."""
    draw = random.Random(1)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 9))) for _ in range(2000)]
    return [" ".join([*draw.choices(words, k=153), "\n\n"]) for _ in range(size // 1000)]


def one_line(path: Path, texts: list[str]) -> None:
    path.with_suffix(".txt").write_text(" ".join(texts).replace("\n", ""))


def paragraphs(path: Path, texts: list[str]) -> None:
    path.with_suffix(".txt").write_text("".join(texts))


def json_list(path: Path, texts: list[str]) -> None:
    path.with_suffix(".json").write_text(json.dumps([{"body": text} for text in texts]))


def csv_zst(path: Path, texts: list[str]) -> None:
    with pa.output_stream(str(path.with_suffix(".csv.zst")), compression="zstd") as stream:
        for cell in ("body", *texts):
            stream.write(f'"{cell}"\n'.encode())


def one_row_group(path: Path, texts: list[str]) -> None:
    pq.write_table(pa.table({"body": texts}), path.with_suffix(".parquet"), row_group_size=10**9)


def peak(root: Path, write: Callable[[Path, list[str]], None], entry: dict[str, object], size: int, how: str) -> float:
    """Megabytes that a process holds at most while it reads or prepares a file."""
    folder = root / str(size)
    (folder / "raw/mine").mkdir(parents=True)
    write(folder / "raw/mine/a", documents(size))
    command = [sys.executable, "-c", PROGRAM, str(folder), repr(entry), how]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout) / 1000


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize(
    ("write", "entry", "how"),
    [
        (paragraphs, TEXTS, "prepare"),
        (one_line, WHOLE, "read"),
        (json_list, TABLE, "read"),
        (csv_zst, TABLE, "read"),
        (one_row_group, TABLE, "read"),
    ],
)
def test_memory_does_not_grow_with_the_file(
    tmp_path: Path, write: Callable[[Path, list[str]], None], entry: dict[str, object], how: str
) -> None:
    small, large = (peak(tmp_path, write, entry, size, how) for size in SIZES)
    assert large - small < (SIZES[1] - SIZES[0]) / 1e6 / 3
