"""What a run tells whoever watches it in the same process (the console of `make demo`). Costs nothing to import."""

from contextvars import ContextVar

from flows.graph import Plan
from flows.progress import Progress
from flows.run_stage import Result


class Listener:
    """Hears of everything a run does; calls come from several threads. This one keeps it to itself."""

    def planned(self, plan: Plan) -> None:
        """The stages of this run are known."""

    def waiting(self, stage: str) -> None:
        """Everything the stage needs is there; it waits for devices."""

    def started(self, stage: str) -> None:
        """The stage's process starts (again, after a retry)."""

    def line(self, stage: str, text: str) -> None:
        """The stage has written a line that is no progress bar."""

    def progress(self, stage: str, progress: Progress) -> None:
        """A progress bar of the stage has moved."""

    def ended(self, stage: str, result: Result) -> None:
        """The stage has ended, perhaps to be tried again."""

    def stopping(self, why: str) -> None:
        """The run was asked to stop; its stages are given time to save their work."""


listener: ContextVar[Listener] = ContextVar("listener", default=Listener())  # noqa: B039
