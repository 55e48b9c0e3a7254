"""The one exception for what a user can put right. Costs nothing to import."""


class PipelineError(Exception):
    """A wrong input: the message is one line naming the key, or the file and line, at fault and what to do."""


class Interrupted(Exception):
    """Training was asked to stop (SIGTERM, SIGINT) and has saved a checkpoint to go on from."""
