"""Removes what the pipeline has made in this folder, and says what: `make clean`. Needs no Prefect; under a second.

That is the outputs of dvc.yaml's stages, all reports, and the working state in .pipeline (checkpoints, MLflow's runs
and registered models, Prefect's database, the remote that .dvc/config names by default). Everything else stays: your
files, and DVC's cache, from which `dvc checkout` brings outputs back.
"""

import argparse
import shutil
import sys
from pathlib import Path

from flows.graph import read_outputs
from flows.outside import is_locked
from flows.reader import tell
from flows.workspace import STATE, workspace
from lightning_modules.errors import PipelineError


def main() -> int:
    """The command line; gives the exit status."""
    argparse.ArgumentParser(
        "python -m flows.clean", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    try:
        clean(Path.cwd())
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    tell("kept DVC's cache: `dvc checkout` brings the outputs back, `dvc gc --workspace` removes all else of it")
    return 0


def clean(root: Path) -> None:
    """Removes it. Raises PipelineError, and leaves everything, where something is at work in `root`."""
    outputs = read_outputs(root)
    with workspace(root, wait_seconds=0.0):
        _refuse_where_at_work(root / STATE)
        for path in (*outputs, root / "reports", root / STATE):
            if path.exists():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
                tell(f"removed {path.relative_to(root)}")


def _refuse_where_at_work(state: Path) -> None:
    """Raises PipelineError where a sweep or a Prefect server is at work in what would be removed."""
    for lock in sorted(state.glob("sweeps/*/lock")):
        if is_locked(lock):
            raise PipelineError(f"the sweep {lock.parent.name} is at work: wait for its end, or stop it")
    users = state / "prefect" / "users"
    if users.exists() and is_locked(users):
        raise PipelineError(
            f"make serve-flows, make sweep or make demo is at work, with its Prefect server in {users.parent}: stop it"
        )


if __name__ == "__main__":
    sys.exit(main())
