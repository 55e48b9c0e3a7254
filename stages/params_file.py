"""params.yaml as text: its values with their line numbers, and one line for what is wrong that says where and what."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from lightning_modules.errors import PipelineError

Location = tuple[str | int, ...]  # the keys, and numbers of list entries, that lead to a value
_NOUNS = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text (in quotes, where it looks like a number)",
    "bool_type": "true or false",
    "dict_type": "a mapping, key: value",
    "model_type": "a mapping, key: value",
    "model_attributes_type": "a mapping, key: value",
    "list_type": "a list",
}


@dataclass(frozen=True)
class ParamsFile:
    """A YAML file read with its layout. `values` are plain Python types; `tree` knows the lines."""

    path: Path
    tree: Any
    values: Any

    def error(self, location: Location, problem: str) -> PipelineError:
        """The one line: file, line, dotted key, problem."""
        return PipelineError(f"{self.path}:{self.line(location)}: {_dotted(location)}: {problem}")

    def line(self, location: Location) -> int:
        """The line, from 1, of the key or list entry; of the nearest enclosing one where it is absent."""
        node, line = self.tree, 1
        for part in location:
            try:
                line = (node.lc.key(part) if isinstance(node, CommentedMap) else node.lc.item(part))[0] + 1
                node = node[part]
            except (AttributeError, KeyError, IndexError, TypeError):
                break
        return int(line)

    def schema_error(self, error: ValidationError, schema: type[BaseModel]) -> PipelineError:
        """The first thing in the file that `schema` does not allow, and how many more there are."""
        details = error.errors(include_url=False)
        # A misspelt key is missing, too: only the misspelling is worth a word.
        worst = [detail for detail in details if detail["type"] == "extra_forbidden"] or details
        first = min(worst, key=lambda detail: self.line(self._written(detail["loc"])))
        more = f" ({len(worst) - 1} more after this)" if len(worst) > 1 else ""
        location = self._written(first["loc"])
        if first["type"].startswith("union_tag"):
            location = (*location, first["ctx"]["discriminator"].strip("'"))
        return self.error(location, _problem(first, schema) + more)

    def _written(self, location: Location) -> Location:
        """`location` without the parts that pydantic adds: the chosen variant of an entry, `[key]`."""
        node, parts = self.tree, []
        for part in location:
            if isinstance(node, CommentedMap) and part not in node and part in (node.get("reader"), node.get("kind")):
                continue
            if part == "[key]":
                continue
            parts.append(part)
            node = _child(node, part)
        return tuple(parts)


def read_params_file(path: Path) -> ParamsFile:
    """Reads YAML 1.2, as DVC does. Raises PipelineError for a file that is missing, empty, or not YAML."""
    try:
        tree = YAML(typ="rt").load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PipelineError(
            f"{path} does not exist: run this from the repository's root, or restore the file"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise PipelineError(f"{path} cannot be read: {error}") from None
    except YAMLError as error:
        raise PipelineError(syntax_problem(path, error)) from None
    if tree is None:
        raise PipelineError(f"{path}:1: the file is empty: restore it")
    if not isinstance(tree, CommentedMap):
        raise PipelineError(f"{path}:1: must be a mapping, key: value, not {_shown(tree)}")
    return ParamsFile(path, tree, _plain(tree))


def syntax_problem(path: Path, error: YAMLError) -> str:
    """What is to be said of a file that is not YAML: the line, the problem, what to do."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    line = f":{mark.line + 1}" if mark else ""
    problem = str(error.problem) if isinstance(error, MarkedYAMLError) and error.problem else str(error).split("\n")[0]
    advice = "indent with spaces, not tabs" if "\\t" in problem else "mend the YAML there"
    if "duplicate key" in problem:
        problem, advice = problem.split(" with value")[0], "the key is there twice: remove one"
    return f"{path}{line}: {problem}: {advice}"


def _problem(detail: ErrorDetails, schema: type[BaseModel]) -> str:
    """What is wrong with one value: what was got, what is allowed."""
    kind, ctx, got = detail["type"], detail.get("ctx", {}), detail["input"]
    if kind == "extra_forbidden":
        keys = _keys_beside(schema, detail["loc"])
        nearest = get_close_matches(str(detail["loc"][-1]), keys, n=1, cutoff=0.5)
        return "unknown key; " + (f"did you mean {nearest[0]}?" if nearest else f"known are {', '.join(keys)}")
    if kind in ("missing", "union_tag_not_found"):
        return "this key is missing: add it"
    if kind == "union_tag_invalid":
        nearest = get_close_matches(str(ctx["tag"]), _quoted(ctx["expected_tags"]), n=1)
        return f"got {ctx['tag']!r}, must be one of {ctx['expected_tags']}" + (
            f"; did you mean {nearest[0]}?" if nearest else ""
        )
    if kind == "value_error":
        return f"got {_shown(got)}, {ctx['error']}"
    if kind in _NOUNS:
        return f"got {_shown(got)}, must be {_NOUNS[kind]}"
    problem = re.sub("^(Input|String|List) should", "must", detail["msg"]).replace(" after validation", "")
    return f"got {_shown(got)}, {problem}"


def _keys_beside(schema: Any, location: Location) -> list[str]:
    """The keys that `schema` knows in the section that the last part of `location` stands in."""
    for part in location[:-1]:
        schema = _bare(schema)
        if isinstance(schema, type) and issubclass(schema, BaseModel):
            schema = next(
                field.annotation for name, field in schema.model_fields.items() if part in (name, field.alias)
            )
        elif get_origin(schema) in (dict, list):
            schema = get_args(schema)[-1]
        else:  # a union of sections, told apart by the value of one key
            schema = next(member for member in get_args(schema) if part in _tags(member))
    return [field.alias or name for name, field in _bare(schema).model_fields.items()]


def _bare(schema: Any) -> Any:
    """A type without its annotations, and without the None that may stand in its place."""
    schema = schema.__origin__ if get_origin(schema) is Annotated else schema
    others = [member for member in get_args(schema) if member is not NoneType]
    return others[0] if NoneType in get_args(schema) and len(others) == 1 else schema


def _tags(section: type[BaseModel]) -> Iterable[Any]:
    return [value for field in section.model_fields.values() for value in get_args(field.annotation)]


def _quoted(names: str) -> list[str]:
    return [name.strip().strip("'") for name in names.split(",")]


def _child(node: Any, part: str | int) -> Any:
    try:
        return node[part]
    except (KeyError, IndexError, TypeError):
        return None


def _dotted(location: Location) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")


def _shown(value: Any) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _plain(node: Any) -> Any:
    """ruamel's types, which carry the layout, as the plain ones that a strict schema accepts."""
    if isinstance(node, CommentedMap):
        return {key: _plain(value) for key, value in node.items()}
    if isinstance(node, CommentedSeq):
        return [_plain(value) for value in node]
    for kind in (bool, int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node
