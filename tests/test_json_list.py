"""Lists of json, read element by element: the same as read at once, however the text is cut."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.json_list import json_list

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def pieces(text: str, size: int) -> Iterator[str]:
    return (text[start : start + size] for start in range(0, len(text), size))


@given(st.lists(VALUES, max_size=6), st.integers(1, 30), st.booleans(), st.sampled_from([None, 1]))
def test_the_elements_are_those_of_json(values: list[Any], size: int, ascii_only: bool, indent: int | None) -> None:
    text = f"\n {json.dumps(values, ensure_ascii=ascii_only, indent=indent)} \n"
    assert list(json_list(pieces(text, size))) == values


@given(st.text('[]{}",:1 \\a', max_size=12), st.integers(1, 5))
def test_what_json_refuses_is_refused(text: str, size: int) -> None:
    try:
        expected = json.loads(text)
    except ValueError:
        with pytest.raises((ValueError, TypeError)):
            list(json_list(pieces(text, size)))
        return
    if isinstance(expected, list):
        assert list(json_list(pieces(text, size))) == expected
    else:
        with pytest.raises(TypeError):
            list(json_list(pieces(text, size)))


def test_only_what_is_needed_is_read() -> None:
    def endless() -> Iterator[str]:
        yield "["
        while True:
            yield '{"text": "a"}, '

    values = json_list(endless())
    assert [next(values) for _ in range(10_000)] == [{"text": "a"}] * 10_000


def test_a_damaged_value_does_not_take_all_that_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.json_list._LONGEST", 1000)
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        yield '[{"text": "a"}, {"text": ?}, '
        while True:
            taken += 1
            yield '{"text": "a"}, '

    values = json_list(endless())
    assert next(values) == {"text": "a"}
    with pytest.raises(ValueError, match="Expecting value"):
        next(values)
    assert taken < 1000
