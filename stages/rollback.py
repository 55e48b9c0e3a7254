"""Make the champion before the present one champion again: `python -m stages.rollback TASK`, or `--to VERSION`.

Whoever loads models:/NAME-TASK@champion gets the older one from then on; a server that runs has to be started again.
The version taken off is tagged `rolled back`, and `register` does not make it champion again: only `--to` does, or
training anew. Takes 3 s, and waits for a registration that is at work in this workspace.
"""

import argparse
from datetime import UTC, datetime
from pathlib import Path

from lightning_modules.errors import PipelineError
from stages.console import run_stage, stage_parser
from stages.election import Tags, forerunners
from stages.params import Params, load_params
from stages.registry import (
    CHALLENGER,
    CHALLENGING,
    CHAMPION,
    LOCK,
    PENDING,
    PROMOTED,
    REFUSED,
    ROLLED_BACK,
    Registry,
    connect,
    mlflow_errors,
)
from stages.spool import file_lock

_NEVER = (REFUSED, PENDING)  # not champion, whoever asks


def rollback(params: Params, task: str, to: str | None, root: Path) -> str:
    """Moves the alias `champion` and says what it did. Raises PipelineError where there is nothing to go back to."""
    if task not in params.tasks:
        raise PipelineError(f"no task {task!r} in params.yaml, which has {', '.join(params.tasks)}")
    registry = Registry(connect(root, "rolled back"), f"{params.tracking.registered_model}-{task}")
    with mlflow_errors("roll back"), file_lock(root / LOCK):
        return _moved(registry, to)


def _moved(registry: Registry, to: str | None) -> str:
    tags, champion = registry.versions(), registry.alias(CHAMPION)
    if champion is None:
        raise PipelineError(f"{registry.name} has no champion: register gives it one")
    target = _checked(to, champion, tags) if to else _before(champion, tags)
    now = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    back = forerunners(tags, champion)
    left = [champion, *back[: back.index(target)]] if target in back else []  # else it goes forward, not back
    for number in left:  # first, so that no registration that runs now takes them for promoted
        if number == champion or tags[number].get("state") == PROMOTED:
            registry.tag(number, state=ROLLED_BACK, alias_reason=f"rolled back to version {target} on {now}")
    registry.tag(target, state=PROMOTED, alias_reason=f"made champion by rollback, for version {champion}, on {now}")
    if tags[target].get("state") == CHALLENGING and "replaced" not in tags[target]:  # it was never champion
        registry.tag(target, replaced=champion)
    registry.set_alias(CHAMPION, target)
    registry.drop_alias(CHALLENGER, target)
    if (other := registry.alias(CHAMPION)) != target:
        raise PipelineError(f"{registry.name}: version {other} became champion meanwhile: look, and run this again")
    return f"{registry.name}: champion is now version {target}, no longer version {champion}"


def _checked(to: str, champion: str, tags: Tags) -> str:
    if to not in tags:
        raise PipelineError(f"--to {to}: there is no such version; there are {', '.join(tags)}")
    if to == champion:
        raise PipelineError(f"--to {to}: it is the champion already")
    if tags[to].get("state") in _NEVER:
        raise PipelineError(f"--to {to}: it is {tags[to]['state']} ({tags[to].get('alias_reason', 'no reason given')})")
    return to


def _before(champion: str, tags: Tags) -> str:
    """The version that the champion took over from, or the nearest before that was champion and not rolled back."""
    for number in forerunners(tags, champion):
        if tags[number].get("state", PROMOTED) == PROMOTED:  # without a state: registered before there were any
            return number
    others = [number for number, its in tags.items() if number != champion and its.get("state") not in _NEVER]
    choice = f"name one with --to ({', '.join(others)})" if others else "there is no other to take"
    raise PipelineError(f"no champion is known from before version {champion}: {choice}")


def main(arguments: argparse.Namespace) -> None:
    """Rolls back and says so."""
    print(rollback(load_params(), arguments.task, arguments.to, Path.cwd()))


if __name__ == "__main__":
    parser = stage_parser(__doc__)
    parser.add_argument("task", help="a task of params.yaml")
    parser.add_argument("--to", metavar="VERSION", help="the number of a version, instead of the champion before")
    run_stage(main, parser)
