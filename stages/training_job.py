"""One training as its stage describes it, and where its checkpoints are.

Checkpoints live outside DVC's outputs, in a folder named by a fingerprint of the parameters and inputs that decide the
result, so a changed parameter or text never resumes another run. Code is not asked: what was mended meanwhile a killed
training takes up where it was.
"""

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from lightning_modules.errors import PipelineError
from lightning_modules.model_folder import Model
from lightning_modules.module import Recipe
from stages.params_schema import Training

CHECKPOINTS = Path(".pipeline/checkpoints")
PATIENCE = 10.0  # seconds that a process which was told to end may take for it
# What a training may go on with where it differs: all else in the settings decides the result.
FREE_SETTINGS = {
    *("accelerator", "devices", "num_nodes", "strategy", "threads", "compile", "recompute_activations"),
    *("keep_checkpoints", "step_times"),
}


@dataclass(frozen=True)
class Job:
    """One training: what to train on what, how, and where the result goes."""

    name: str  # the DVC stage
    output: Path
    section: Training
    recipe: Recipe
    settings: dict[str, Any]  # the parameters that decide the result
    tokens: Path  # the token stores that it reads
    inputs: list[Path]  # these, the tokenizer, the model that it starts from
    limits: dict[str, Any]  # longest source and target of a task, and which end of a source is kept
    tokenizer_file: Path
    cut: dict[str, int]  # training texts longer than the limits
    same_shapes: bool  # whether all its batches look alike
    score: Callable[[Model], float] | None = None  # by which validations choose the best weights; None: by the loss
    missing: int = 0  # training pairs left out: their answer does not stand in the source, or is too long

    @cached_property
    def checkpoints(self) -> Path:
        """Where to resume from: a folder for each combination of settings and inputs."""
        return CHECKPOINTS / f"{self.name}-{_fingerprint(self.settings, self.inputs)}"

    @property
    def others(self) -> list[Path]:
        """Folders with checkpoints of the same stage with other settings or inputs."""
        found = {path.parent for path in CHECKPOINTS.glob(f"{self.name}-*/step-*.ckpt")} - {self.checkpoints}
        return sorted(path for path in found if not path.suffix)  # but those that are being removed

    @contextmanager
    def alone(self) -> Iterator[None]:
        """No other process trains for this stage, here, while the block lasts.

        Raises PipelineError where one does, as it may whose `dvc repro` alone was killed: the two would delete each
        other's files.
        """
        state = CHECKPOINTS.parent
        state.mkdir(exist_ok=True)
        with (state / f"{self.name}.lock").open("a+") as lock:
            until = time.monotonic() + PATIENCE
            while not _locked(lock):
                if time.monotonic() > until:
                    lock.seek(0)
                    raise PipelineError(
                        f"{self.name} is being trained by process {lock.read() or '?'} already: wait for it, or end "
                        "it (SIGTERM saves a checkpoint)"
                    )
                time.sleep(0.1)
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            yield


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _fingerprint(settings: dict[str, Any], inputs: list[Path]) -> str:
    """A short digest of settings and inputs: of each file its name, size and first mebibyte.

    Token stores are longer, and have a digest of all their content in `meta.json`.
    """
    digest = hashlib.sha256(json.dumps(_deciding(settings), sort_keys=True).encode())
    for path in sorted(file for folder in inputs for file in folder.rglob("*") if file.is_file()):
        digest.update(f"{path}:{path.stat().st_size}".encode())
        with path.open("rb") as opened:
            digest.update(opened.read(2**20))
    return digest.hexdigest()[:16]


def _deciding(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _deciding(value) if isinstance(value, dict) else value
        for name, value in settings.items()
        if name not in FREE_SETTINGS
    }
