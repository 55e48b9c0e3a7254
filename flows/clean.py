"""Removes what the pipeline has made in this folder, and says what: `make clean`. Needs no Prefect; under a second.

That is the outputs of dvc.yaml's stages, all reports, and the working state in .pipeline (checkpoints, the MLflow and
Prefect databases). Everything else stays: your files, and DVC's cache, from which `dvc checkout` brings outputs back.
"""

import shutil
import sys
from pathlib import Path

from flows.graph import read_outputs
from flows.workspace import STATE, workspace
from lightning_modules.errors import PipelineError


def main() -> int:
    """The command line; gives the exit status."""
    root = Path.cwd()
    try:
        outputs = read_outputs(root)
        with workspace(root, wait_seconds=0.0):
            for path in (*outputs, root / "reports", root / STATE):
                if path.exists():
                    print(f"removed {path.relative_to(root)}")
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("kept DVC's cache: `dvc checkout` brings the outputs back, `dvc gc --workspace` empties it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
