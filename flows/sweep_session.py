"""A sweep at work: its file, its folder .pipeline/sweeps/NAME, what runs its trials, and whom it tells. No Prefect."""

import fcntl
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.devices import DevicePool, visible_gpus
from flows.sweep_definition import Sweep, check_values, read_sweep
from flows.sweep_results import RESULTS, closing_lines, trial_line, write_results
from flows.sweep_search import FAILED, Search, Trial
from flows.sweep_tracking import SweepTracking, tracked
from flows.sweep_trial import Lent, Place, TrialRunner
from flows.workspace import STATE
from lightning_modules.errors import PipelineError
from stages.outputs import whole_file

SWEEPS = STATE / "sweeps"
HOPELESS = 3  # so many failed trials and no other: what is wrong is not their values
MAY_CHANGE = {"trials", "side_by_side"}  # in the file of a sweep that has begun


class Session:
    """What the tasks of one run of a sweep share."""

    def __init__(
        self, sweep: Sweep, search: Search, place: Place, tracking: SweepTracking, show: Callable[[str], None]
    ) -> None:
        self.sweep, self.search, self.place, self.tracking, self.show = sweep, search, place, tracking, show
        self.runner = TrialRunner(sweep, search, place, tracking.environment, self._ended)
        self.name = place.copy.parent.name
        self._devices = DevicePool.of_this_machine()
        gpus, wanted = len(visible_gpus()), sweep.side_by_side
        self.side_by_side = max(gpus, 1) if wanted == "auto" else wanted
        self._share = max(gpus // self.side_by_side, 1) if gpus else 0  # GPUs of a trial
        self._interrupted = search.interrupted()

    def next(self) -> Trial | None:
        """The next trial: one that an earlier run could not end, or a new one. Raises PipelineError where all fail."""
        if self.runner.stopping:
            return None
        if self._interrupted:
            return self._interrupted.pop(0)
        ended = self.search.ended()
        if len(ended) >= HOPELESS and all(trial.state == FAILED for trial in ended):
            raise PipelineError(
                f"all of the first {len(ended)} trials failed; the last: {ended[-1].reason} (once that is mended, "
                f"remove {SWEEPS / self.name} and begin again)"
            )
        return self.search.ask()

    def prepare(self, on_line: Callable[[str], None]) -> None:
        """Runs once what all trials need, as `TrialRunner.prepare` does."""
        self.runner.prepare(on_line, self._devices)

    def run(self, trial: Trial, on_line: Callable[[str], None]) -> Trial | None:
        """Runs a trial on devices of its own; None where it was stopped."""
        with self._devices.lend(self._share, lambda: self.runner.stopping) as lent:
            if lent is None:
                return None
            devices = Lent(self._devices.environment(lent), self._devices.held(lent))
            return self.runner.run(trial, on_line, devices)

    def close(self) -> list[str]:
        """Writes the results of a sweep whose trials have all ended; gives what is to be said."""
        best = self.search.best()
        files = write_results(self.sweep, self.place.root / RESULTS / self.name, self.search)
        self.tracking.done(best, files)
        return closing_lines(self.sweep, self.name, self.search.ended(), best)

    def _ended(self, trial: Trial) -> None:
        best = self.search.best()
        self.tracking.ended(trial, best)
        self.show(trial_line(trial, best))


@contextmanager
def opened(root: Path, file: Path, flow_url: str, show: Callable[[str], None]) -> Iterator[Session]:
    """The sweep of `file`, begun or gone on with, for as long as the block lasts; `show` takes a line a trial.

    Raises PipelineError for a wrong file, where another process runs the sweep, and where the file has changed since.
    """
    sweep = read_sweep(file)
    check_values(sweep, file, root / "params.yaml", root / STATE / "params.sweep.yaml")
    folder = root / SWEEPS / file.stem
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PipelineError(f"another process runs the sweep {file.stem}: wait for its end, or stop it") from None
        _same_as_before(sweep, file, folder / "sweep.json")
        search = Search(sweep, folder / "study.db")
        place = Place(root, folder / "copy", folder / "trials")
        with tracked(root, _key(folder), flow_url, sweep, folder) as tracking:
            yield Session(sweep, search, place, tracking, show)


def _same_as_before(sweep: Sweep, file: Path, known: Path) -> None:
    written = sweep.model_dump_json(exclude=MAY_CHANGE)
    if known.exists() and known.read_text(encoding="utf-8") != written:
        raise PipelineError(
            f"{file} is not as it was when this sweep began ({' and '.join(sorted(MAY_CHANGE))} may change): give it "
            f"another name, or remove {known.parent} to begin again"
        )
    with whole_file(known) as path:
        path.write_text(written, encoding="utf-8")


def _key(folder: Path) -> str:
    """By which MLflow knows the sweep, made once."""
    file = folder / "key"
    if not file.exists():
        with whole_file(file) as path:
            path.write_text(f"sweep-{folder.name}-{uuid.uuid4().hex[:8]}", encoding="utf-8")
    return file.read_text(encoding="utf-8")
