"""Files that are whole under their names or not there at all, and one line where they cannot be written."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from lightning_modules.errors import PipelineError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises PipelineError where the block cannot write to `path`: why, how much room there is, and what is left."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        folder = next(folder for folder in path.absolute().parents if folder.is_dir())
        free, problem = shutil.disk_usage(folder).free, " ".join(str(error).split())
        raise PipelineError(
            f"{path} cannot be written ({problem}; {free / 1e9:.1f} GB free there): what was saved before is kept, and "
            "the same command goes on from it once there is room"
        ) from error


def flush(folder: Path) -> None:
    """Waits until all of a folder is on the disk, and not only in the system's memory."""
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_whole(path: Path, write: Callable[[Path], object], check: Callable[[Path], object] | None = None) -> None:
    """Lets `write` make a file beside `path`; moves it there once it is on the disk, and `check` finds nothing wrong.

    Raises PipelineError where it cannot be written, and leaves what bore the name before.
    """
    unfinished = path.with_name(f"{path.name}.unfinished")
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(unfinished)
            with unfinished.open("rb") as file:
                os.fsync(file.fileno())
            if check is not None:
                check(unfinished)
            unfinished.replace(path)
        except BaseException:
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)
            raise
