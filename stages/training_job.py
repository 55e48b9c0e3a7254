"""One training as its stage describes it, and where its checkpoints are.

Checkpoints live outside DVC's outputs, in a folder named by a fingerprint of all that decides the result, so a changed
parameter or text never resumes another run.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning_modules.model_folder import Model
from lightning_modules.module import Recipe
from stages.params_schema import Training

CHECKPOINTS = Path(".pipeline/checkpoints")
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


def _fingerprint(settings: dict[str, Any], inputs: list[Path]) -> str:
    """A short digest of settings and inputs: of each file its name, size and first mebibyte."""
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
