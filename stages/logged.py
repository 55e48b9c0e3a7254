"""Which values a run gone on with had logged before it was killed: it makes the steps since its last checkpoint again.

Costs a look into a dictionary for each value.
"""

from collections.abc import Iterable

from stages.spool import Operation

ROLL_BACKS = "roll_backs"  # what `lightning_modules.guards` logs, once, where a training goes back to leave batches out
MACHINE = "system/"  # begins the names of the machine's load, whose steps are samples


class Logged:
    """The step of each metric's last value, as long as earlier ones may come again."""

    def __init__(self, operations: Iterable[Operation] = ()) -> None:
        """`operations`: of the run's journal, sent or not."""
        self._last: dict[str, int] = {}
        for operation in operations:
            if operation["op"] == "metrics":
                if ROLL_BACKS in operation["values"]:
                    self._go_back()
                else:
                    self._last |= dict.fromkeys(operation["values"], operation["step"])

    def new(self, values: dict[str, float], step: int) -> dict[str, float]:
        """Those of `values` that were not logged at that step."""
        if ROLL_BACKS in values:
            self._go_back()
            return values
        known = {name for name in values if step <= self._last.get(name, step - 1)}
        for name in values.keys() - known:  # from now on a step that comes again is one made anew
            self._last.pop(name, None)
        return {name: value for name, value in values.items() if name not in known}

    def samples(self) -> int:
        """How many there are of the machine's load."""
        return 1 + max((step for name, step in tuple(self._last.items()) if name.startswith(MACHINE)), default=-1)

    def _go_back(self) -> None:
        """What follows is made from other batches, though its steps have been logged: none of it was."""
        self._last = {name: step for name, step in self._last.items() if name.startswith(MACHINE)}
