"""params.yaml, read and checked: types, ranges, unknown and missing keys, and what must hold between keys.

`load_params()` gives every stage its typed parameters. `python -m stages.params` only checks the file, before any work.
The classes are in `stages.params_schema` and `stages.params_data`. Costs about 0.2 s, imports included.
"""

import argparse
from collections.abc import Collection
from pathlib import Path

from pydantic import ValidationError

from stages.console import run_stage, stage_parser
from stages.params_checks import problems
from stages.params_file import ParamsFile, read_params_file
from stages.params_ready import PRETRAINING_ALONE, unready
from stages.params_schema import Params

__all__ = ["Params", "load_params", "require_ready"]


def load_params(path: Path = Path("params.yaml")) -> Params:
    """Reads and checks params.yaml. Raises PipelineError: one line with file, line number, key, and what to do."""
    return _checked(read_params_file(path))


def require_ready(path: Path, stages: Collection[str] | None = None) -> Params:
    """As `load_params`, for the beginning of a run: what these `stages` (None: all) would fail at is refused, too.

    No stage checks that much: its own inputs are at hand, and the user's files may have gone since they were fetched.
    """
    file = read_params_file(path)
    params = _checked(file)
    for location, problem in unready(params, path.parent, stages):
        raise file.error(location, problem)
    return params


def _checked(file: ParamsFile) -> Params:
    try:
        params = Params.model_validate(file.values)
    except ValidationError as error:
        raise file.schema_error(error, Params) from None
    try:
        config = params.model.config(vocab_size=params.tokenizer.vocab_size)
    except ValueError as error:
        field, _, problem = str(error).partition(": ")
        raise file.error(("model", field), problem) from None
    for location, problem in problems(params, config, file.path.parent):
        raise file.error(location, problem)
    return params


def main(_: argparse.Namespace) -> None:
    """Checks params.yaml and says so."""
    params = require_ready(Path("params.yaml"))
    print("params.yaml: ok" + ("" if params.tasks else f", but with no tasks only to {PRETRAINING_ALONE}"))


if __name__ == "__main__":
    run_stage(main, stage_parser(__doc__))
