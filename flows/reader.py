"""What a command prints, for a reader who may have seen enough: `| head`. Costs nothing."""

import os
import sys


def tell(text: str) -> None:
    """Prints a line; from the moment on that nobody reads any more, nothing. No work ends half done for that."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # nor does Python complain at its end
        os.close(nowhere)
