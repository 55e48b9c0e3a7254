"""How a command line here ends: 0 done, 1 a wrong input or a missing library, with one line on stderr."""

import sys
from collections.abc import Callable

from lightning_modules.errors import PipelineError


def exit_status(work: Callable[[], None]) -> int:
    """Does the work, and says in one line what was wrong with its input, or which library it lacks."""
    try:
        work()
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except ImportError as error:  # the work imports what only the extra brings
        print(f"error: {' '.join(str(error).split())}: pip install '.[interop]'", file=sys.stderr)
        return 1
    return 0
