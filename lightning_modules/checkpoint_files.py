"""Checkpoints on disk: written where they are to stay, read again with their checksums, found when a run goes on.

Reading one again takes 1 s a gigabyte.
"""

import errno
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from lightning_modules.disk import write_whole
from lightning_modules.errors import PipelineError
from lightning_modules.lightning import pl

# The system's trouble, not the file's, which is not to be set aside for it.
_PASSING = {errno.EACCES, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT}
LEFTOVERS = ("*.unfinished", ".tmp*")  # what a killed process was writing; the second are safetensors' own


class CheckpointFiles(pl.plugins.TorchCheckpointIO):
    """How Lightning's Trainer writes a checkpoint: beside its place.

    Its own way goes through memory and the folder of temporary files, which may be small, and which nobody clears of
    what a killed process leaves there.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Raises PipelineError where it cannot be written."""
        write_whole(Path(path), lambda unfinished: _save(checkpoint, unfinished), _require_readable)


def check_readable(path: Path) -> None:
    """Raises where a checkpoint is cut or a byte of it is not what was written (ZIP's checksums)."""
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(f"{damaged} in it has changed since it was written")
    torch.load(path, map_location="meta", weights_only=True, mmap=True)


def newest_checkpoint(folder: Path, first: bool = True) -> Path | None:
    """The newest checkpoint that can be read. One that cannot is named on stdout and set aside as `*.damaged`.

    All processes of a training may ask at the same time. The `first` of them, which alone writes there, removes what a
    killed one was writing. Raises PipelineError where it is the system that cannot read now.
    """
    if first:
        for pattern in LEFTOVERS:
            for left in folder.glob(pattern):
                if left.is_file():
                    left.unlink(missing_ok=True)
    for path in sorted(folder.glob("step-*.ckpt"), reverse=True):
        try:
            check_readable(path)
        except Exception as error:  # a cut or overwritten file fails in many ways
            if isinstance(error, MemoryError) or getattr(error, "errno", None) in _PASSING:
                raise PipelineError(f"checkpoint {path} cannot be read now ({error}): run again") from error
            with suppress(FileNotFoundError):  # another process was faster
                path.rename(path.with_suffix(".damaged"))
                print(f"checkpoint {path} cannot be read ({error}): set aside, using the one before", flush=True)
        else:
            return path
    return None


def _save(checkpoint: dict[str, Any], path: Path) -> None:
    try:
        with path.open("wb") as file:
            torch.save(checkpoint, file)
    except RuntimeError as error:  # torch's word for it; what the file said comes before
        raise (error.__context__ if isinstance(error.__context__, OSError) else OSError(error)) from error


def _require_readable(path: Path) -> None:
    try:
        check_readable(path)
    except Exception as error:  # as above
        raise OSError(f"read again, it is not what was written: {error}") from error
