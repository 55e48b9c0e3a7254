"""What pydantic finds wrong in a file, in our words: where, as the user wrote it, what was got, and what is allowed."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

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
    "path_type": "text, the path of a file or folder",
}
_FORMS = {int: "a whole number", float: "a number", str: "text", list: "a list", dict: "a mapping, key: value"}


@dataclass(frozen=True)
class Mistake:
    """One thing in a file that its schema does not allow."""

    location: Location
    problem: str
    misspelt: bool = False  # a key that the schema does not know


def mistakes(error: ValidationError, schema: type[BaseModel], values: Any) -> list[Mistake]:
    """What `schema` does not allow in `values`, in the order of the schema: one at least."""
    return list(_found(error.errors(include_url=False), 0, schema, values, ()))


def shown(value: Any) -> str:
    """A value as a message has it: short."""
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _found(details: Iterable[ErrorDetails], depth: int, schema: Any, value: Any, at: Location) -> Iterator[Mistake]:
    """The mistakes in the value at `at`: those of its own, then those in it.

    Pydantic puts parts of its own into a location, such as the member of a union that it tried, so the two are walked
    side by side: `depth` parts of the errors' locations lead to where `at` does.
    """
    schema, inner = _bare(schema), dict[str | int, list[ErrorDetails]]()
    for detail in details:
        place = detail["loc"][depth:]
        if place in ((), ("[key]",)):
            yield Mistake((*at, *_discriminator(detail)), _problem(detail))
        elif detail["type"] == "extra_forbidden" and len(place) == 1:
            yield Mistake((*at, *place), _unknown(str(place[0]), _keys(schema)), misspelt=True)
        else:
            inner.setdefault(place[0], []).append(detail)
    if (members := _members(schema)) and inner:
        yield from _of_union(members, inner, depth, value, at)
        return
    for part, below in inner.items():
        yield from _found(below, depth + 1, _child_schema(schema, part), _child(value, part), (*at, part))


def _of_union(
    members: list[Any], by_label: Mapping[str | int, list[ErrorDetails]], depth: int, value: Any, at: Location
) -> Iterator[Mistake]:
    """`by_label`: what each member that was tried says, in their order. A mapping or list shows which one was meant."""
    tagged = [(member, label) for label in by_label for member in members if label in _tags(member)]
    if tagged:  # a key of the value had chosen the member
        meant = [(member, by_label[label]) for member, label in tagged]
    else:
        tried = zip(members, by_label.values(), strict=False)
        meant = [(member, details) for member, details in tried if _has_form(member, value)]
    if len(meant) == 1:
        [(member, details)] = meant
        yield from _found(details, depth + 1, member, value, at)
    else:
        yield Mistake(at, f"got {shown(value)}, must be {_either(members)}")


def _problem(detail: ErrorDetails) -> str:
    """What is wrong with one value: what was got, what is allowed."""
    kind, ctx, got = detail["type"], detail.get("ctx", {}), detail["input"]
    if kind in ("missing", "union_tag_not_found"):
        return "this key is missing: add it"
    if kind == "union_tag_invalid":
        nearest = get_close_matches(str(ctx["tag"]), _quoted(ctx["expected_tags"]), n=1)
        return f"got {ctx['tag']!r}, must be one of {ctx['expected_tags']}" + (
            f"; did you mean {nearest[0]}?" if nearest else ""
        )
    if kind == "value_error":
        return f"got {shown(got)}, {ctx['error']}"
    if kind in _NOUNS:
        return f"got {shown(got)}, must be {_NOUNS[kind]}"
    problem = re.sub("^(Input|String|List|Dictionary) should", "must", detail["msg"]).replace(" after validation", "")
    return f"got {shown(got)}, {problem}"


def _unknown(key: str, known: list[str]) -> str:
    nearest = get_close_matches(key, known, n=1, cutoff=0.5)
    return "unknown key; " + (f"did you mean {nearest[0]}?" if nearest else f"known are {', '.join(known)}")


def _discriminator(detail: ErrorDetails) -> Location:
    """The key that chooses a member of a union, where that is what is wrong."""
    return (detail["ctx"]["discriminator"].strip("'"),) if detail["type"].startswith("union_tag") else ()


def _either(members: list[Any]) -> str:
    """What a value may be that may be one of several things."""
    kinds = [_bare(member) for member in members]
    words: list[str] = []
    for kind in kinds:
        if get_origin(kind) is Literal:
            words += map(repr, get_args(kind))
        elif kind is bool:
            words += ["true", "false"]
        elif _is_section(kind):
            words.append(f"a mapping {{{', '.join(f'{key}: …' for key in _keys(kind))}}}")
        elif kind is not int or float not in kinds:
            form = get_origin(kind) or kind
            words.append(_FORMS.get(form, str(form)))
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _bare(schema: Any) -> Any:
    """A type without its annotations, and without the None that may stand in its place."""
    if get_origin(schema) is Annotated:
        return _bare(schema.__origin__)
    others = [member for member in get_args(schema) if member is not NoneType]
    return _bare(others[0]) if NoneType in get_args(schema) and len(others) == 1 else schema


def _members(schema: Any) -> list[Any]:
    """Those of a union; of another type none."""
    is_union = get_origin(schema) in (Union, UnionType)
    return [member for member in get_args(schema) if member is not NoneType] if is_union else []


def _child_schema(schema: Any, part: str | int) -> Any:
    if _is_section(schema):
        found = (field.annotation for name, field in schema.model_fields.items() if part in (name, field.alias))
        return next(found, Any)
    return get_args(schema)[-1] if get_origin(schema) in (dict, list) else Any


def _child(value: Any, part: str | int) -> Any:
    try:
        return value[part]
    except (KeyError, IndexError, TypeError):
        return None


def _has_form(member: Any, value: Any) -> bool:
    kind = _bare(member)
    form = dict if _is_section(kind) else get_origin(kind) or kind
    return isinstance(value, dict | list) and type(value) is form


def _is_section(schema: Any) -> bool:
    return isinstance(schema, type) and issubclass(schema, BaseModel)


def _keys(section: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in section.model_fields.items()]


def _tags(member: Any) -> list[Any]:
    kind = _bare(member)
    fields = kind.model_fields.values() if _is_section(kind) else ()
    return [value for field in fields for value in get_args(field.annotation)]


def _quoted(names: str) -> list[str]:
    return [name.strip().strip("'") for name in names.split(",")]
