"""A model that the pipeline starts from, checked against the hash in params.yaml. Costs reading its weights once.

The hash pins model.safetensors. Which tokenizer.json belongs to it, config.json says with a hash of its own, against
which the folder is checked whenever its model is loaded. config.json itself is pinned by nothing, and DVC looks at the
hash in params.yaml alone: whoever changes a file beside the same weights has the stages that read it run again
(`dvc repro --force --single-item STAGE`: tokenizer, pretrain, scratch@TASK).
"""

import hashlib
from pathlib import Path

from lightning_modules.errors import PipelineError
from stages.params_schema import StartFrom


def checked_folder(start: StartFrom) -> Path:
    """The model's folder. Raises PipelineError where its weights are not there, or not those that were pinned."""
    weights = start.path / "model.safetensors"
    try:
        with weights.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise PipelineError(f"model.start_from: {weights} cannot be read ({error}): import the model first") from error
    if found != start.sha256:
        raise PipelineError(
            f"model.start_from: {weights} has the SHA-256 {found}, params.yaml says {start.sha256}: "
            "if you changed the model on purpose, write the new hash there"
        )
    return start.path
