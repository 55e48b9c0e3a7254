"""Other values in params.yaml for the time of a run: written, and taken back afterwards, also after a kill or an edit.

Costs a YAML round trip, some 50 ms. Never imports Prefect.
"""

import difflib
import io
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from lightning_modules.errors import PipelineError
from stages.console import BEFORE_OVERRIDES
from stages.outputs import whole_file
from stages.params import Params
from stages.params_file import syntax_problem

WITH_OVERRIDES = BEFORE_OVERRIDES.with_name("params.during.yaml")
_ABSENT = object()


def overridden(text: str, overrides: Mapping[str, Any]) -> str:
    """The text of params.yaml with other values for some dotted keys; comments stay. Raises PipelineError.

    A key that its section may have is added where it is not there: `model.positions`, say.
    """
    yaml = _round_trip()
    try:
        params = yaml.load(text)
    except YAMLError as error:
        raise PipelineError(syntax_problem(Path("params.yaml"), error)) from error
    there = list(_dotted_keys(params))
    known = [*there, *(key for key in _possible_keys(Params) if key.rpartition(".")[0] in there)]
    for key, value in overrides.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise PipelineError(f"overrides: params.yaml has no key {key!r}{hint}")
        *path, last = key.split(".")
        table = params
        for part in path:
            table = table[part]
        table[last] = value
    return _written(yaml, params)


def override(root: Path, overrides: Mapping[str, Any]) -> None:
    """Writes `overrides` (dotted key → value) into `root`/params.yaml, and keeps both texts for `take_back`."""
    before = (root / "params.yaml").read_text(encoding="utf-8")
    during = overridden(before, overrides)
    _write(root / BEFORE_OVERRIDES, before)
    _write(root / WITH_OVERRIDES, during)
    _write(root / "params.yaml", during)


def take_back(root: Path, tell: Callable[[str], None]) -> None:
    """Puts params.yaml back as it was before `override`. Of one that was edited since, the edit stays, and is told."""
    params, before, during = (root / name for name in ("params.yaml", BEFORE_OVERRIDES, WITH_OVERRIDES))
    if before.exists() and during.exists():
        if not params.exists() or params.read_bytes() == during.read_bytes():
            before.replace(params)
        else:
            try:
                text, keys = _edited(*(path.read_text(encoding="utf-8") for path in (before, during, params)))
            except (YAMLError, ValueError, TypeError, AttributeError):  # no YAML, no UTF-8, no mapping
                tell(f"params.yaml was edited during a run and cannot be read: what it was before is in {before}")
                return
            if keys:
                _write(params, text)
                tell(f"params.yaml was edited during a run: the edit stays, the run's own {', '.join(keys)} did not")
    before.unlink(missing_ok=True)
    during.unlink(missing_ok=True)


def _edited(before: str, during: str, now: str) -> tuple[str, list[str]]:
    """The text `now` without what the run overrode and the edit left so; and the dotted keys that this changed."""
    yaml = _round_trip()
    params = yaml.load(now)
    keys = list(_put_back(yaml.load(before), yaml.load(during), params))
    return _written(yaml, params), keys


def _put_back(
    before: Mapping[str, Any], during: Mapping[str, Any], now: MutableMapping[str, Any], prefix: str = ""
) -> Iterator[str]:
    for key in dict.fromkeys([*before, *during]):
        old, new, left = (table.get(key, _ABSENT) for table in (before, during, now))
        if old == new:
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping) and isinstance(left, MutableMapping):
            yield from _put_back(old, new, left, f"{prefix}{key}.")
        elif left == new:
            if old is _ABSENT:
                del now[key]
            else:
                now[key] = old
            yield f"{prefix}{key}"


def _write(path: Path, text: str) -> None:
    with whole_file(path) as file:
        file.write_text(text, encoding="utf-8")


def _round_trip() -> YAML:
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    return yaml


def _written(yaml: YAML, params: Any) -> str:
    out = io.StringIO()
    yaml.dump(params, out)
    return out.getvalue()


def _dotted_keys(table: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in table.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _dotted_keys(value, f"{prefix}{key}.")


def _possible_keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield f"{prefix}{name}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _possible_keys(field.annotation, f"{prefix}{name}.")
