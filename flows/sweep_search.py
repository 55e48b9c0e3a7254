"""The search of a sweep: Optuna's TPE (Bergstra et al. 2011) and median rule, kept in SQLite. Importing costs 0.3 s.

What is asked for as trial number n depends on the seed, n and how the trials before it have ended, and not on whether
the sweep was interrupted. All methods may be called from several threads.
"""

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna

from flows.sweep_definition import Range, Sweep

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

COMPLETE, PRUNED, FAILED = "complete", "pruned", "failed"


@dataclass(frozen=True)
class Trial:
    """A trial to be run, or one that has been."""

    number: int
    values: dict[str, Any]  # by dotted key of params.yaml
    state: str = ""  # complete, pruned, failed; empty: not ended
    value: float | None = None  # the best validation
    reason: str = ""  # why it failed
    seconds: float = 0.0


class Search:
    """The study of one sweep."""

    def __init__(self, sweep: Sweep, file: Path) -> None:
        """Opens the study in the database `file`, or begins it."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._sweep, self._lock = sweep, threading.Lock()
        never = sweep.prune_after == "never"
        self.study = optuna.create_study(
            storage=f"sqlite:///{file}",
            study_name=file.parent.name,
            direction="maximize" if sweep.maximise else "minimize",
            pruner=optuna.pruners.NopPruner() if never else optuna.pruners.MedianPruner(int(sweep.prune_after)),
            load_if_exists=True,
        )
        unfinished = [frozen for frozen in self.study.trials if not _ended(frozen)]
        self._reported = {(frozen.number, step) for frozen in unfinished for step in frozen.intermediate_values}
        self._open = {frozen.number: optuna.Trial(self.study, frozen._trial_id) for frozen in unfinished}

    def interrupted(self) -> list[Trial]:
        """The trials that were begun and have not ended: of a sweep that was stopped or killed."""
        with self._lock:
            return [Trial(number, self._values(trial)) for number, trial in sorted(self._open.items())]

    def ask(self) -> Trial | None:
        """The next trial; None when there were as many as the sweep has."""
        with self._lock:
            if len(self.study.trials) >= self._sweep.trials:
                return None
            trial = self.study.ask()
            self._open[trial.number] = trial
            return Trial(trial.number, self._values(trial))

    def report(self, number: int, step: int, value: float) -> bool:
        """Takes a validation of a trial at work; true where it is to be pruned."""
        with self._lock:
            if (number, step) not in self._reported:
                self._open[number].report(value, step)
                self._reported.add((number, step))
            return self._open[number].should_prune()

    def tell(self, ended: Trial) -> None:
        """Takes the end of a trial."""
        with self._lock:
            trial = self._open.pop(ended.number)
            trial.set_user_attr("reason", ended.reason)
            trial.set_user_attr("seconds", ended.seconds)
            states = optuna.trial.TrialState
            state = {COMPLETE: states.COMPLETE, PRUNED: states.PRUNED, FAILED: states.FAIL}[ended.state]
            self.study.tell(trial, ended.value if ended.state == COMPLETE else None, state)

    def ended(self) -> list[Trial]:
        """The trials that have ended, in the order of their numbers."""
        with self._lock:
            return [self._trial(frozen) for frozen in self.study.trials if _ended(frozen)]

    def best(self) -> Trial | None:
        """The best trial that ran to its end, if one has."""
        complete = [trial for trial in self.ended() if trial.state == COMPLETE]
        sign = -1 if self._sweep.maximise else 1
        return min(complete, key=lambda trial: sign * (trial.value or 0.0), default=None)

    def _trial(self, frozen: "FrozenTrial") -> Trial:
        values = {key: self._written(key, value) for key, value in frozen.params.items()}
        state = {"COMPLETE": COMPLETE, "PRUNED": PRUNED, "FAIL": FAILED}[frozen.state.name]
        notes = frozen.user_attrs
        return Trial(frozen.number, values, state, frozen.value, notes.get("reason", ""), notes.get("seconds", 0.0))

    def _values(self, trial: optuna.Trial) -> dict[str, Any]:
        """What the trial is to try; a key that was asked for before keeps its value."""
        values: dict[str, Any] = {}
        self.study.sampler = optuna.samplers.TPESampler(seed=self._sweep.seed + trial.number)
        for key, what in self._sweep.space.items():
            if not isinstance(what, Range):
                values[key] = trial.suggest_categorical(key, what)
            elif what.whole:
                values[key] = trial.suggest_int(key, int(what.low), int(what.high), log=what.log)
            else:
                values[key] = self._written(key, trial.suggest_float(key, what.low, what.high, log=what.log))
        return values

    def _written(self, key: str, value: Any) -> Any:
        what = self._sweep.space[key]
        return what.rounded(value) if isinstance(what, Range) else value


def _ended(trial: "FrozenTrial") -> bool:
    return trial.state.is_finished()
