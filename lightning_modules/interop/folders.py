"""An exported folder is whole or absent: a failed or killed export leaves nothing that could be taken for good."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lightning_modules.errors import PipelineError


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """Gives an empty folder beside `output` to write into, which becomes `output` when the block ends without an error.

    Raises PipelineError where `output` is there already and holds something, or cannot be made.
    """
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise PipelineError(f"{output} is there already: remove it, or choose another output")
    unfinished = output.with_name(f".{output.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    made = [parent for parent in output.parents if not parent.exists()]
    try:
        unfinished.mkdir(parents=True)
    except OSError as error:
        raise PipelineError(f"{output} cannot be made ({error}): choose another output") from error
    try:
        yield unfinished
        if output.exists():
            output.rmdir()
        unfinished.rename(output)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        for parent in made:
            with suppress(OSError):  # not empty: the output is there
                parent.rmdir()
