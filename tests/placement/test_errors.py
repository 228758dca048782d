"""The error tree is what its docstring draws, and crosses a process whole."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.placement import errors
from stoker.placement.errors import StokerError, error_classes

CLASSES = list(error_classes())

texts = st.text(max_size=40)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
taken = {"self", "cause", "remedy", "retry_after_seconds"}


def drawn() -> list[tuple[str, str | None, int, str]]:
    """(class, parent, status, code) of each line of the docstring's drawing."""
    rows, path = [], []
    line = re.compile(r"^([│├└─ ]*)(\w+) +(\d{3})  (\w+)$")
    for match in filter(None, map(line.match, (errors.__doc__ or "").splitlines())):
        depth = len(match[1]) // 4
        path[depth:] = [match[2]]
        rows.append((match[2], path[depth - 1] if depth else None, int(match[3]), match[4]))
    return rows


def test_the_drawing_is_the_tree() -> None:
    actual = [
        (cls.__name__, None if cls is StokerError else cls.__bases__[0].__name__) for cls in CLASSES
    ]
    assert sorted((name, parent or "") for name, parent, _, _ in drawn()) == sorted(
        (name, parent or "") for name, parent in actual
    )


def test_the_drawing_gives_every_status_and_code() -> None:
    assert {name: (status, code) for name, _, status, code in drawn()} == {
        cls.__name__: (cls.status, cls.code) for cls in CLASSES
    }


def test_every_class_has_a_code_of_its_own() -> None:
    assert len({cls.code for cls in CLASSES}) == len(CLASSES)


@pytest.mark.parametrize("cls", CLASSES)
@given(
    cause=texts,
    remedy=texts,
    retry_after_seconds=st.none() | st.floats(0, 1e6),
    details=st.dictionaries(texts.filter(lambda key: key not in taken), json_values, max_size=3),
)
def test_an_error_crosses_a_process_whole(
    cls: type[StokerError],
    cause: str,
    remedy: str,
    retry_after_seconds: float | None,
    details: dict[str, object],
) -> None:
    error = cls(cause, remedy, retry_after_seconds=retry_after_seconds, **details)
    read = StokerError.from_wire(json.loads(json.dumps(error.to_wire())))
    assert type(read) is cls
    assert vars(read) == vars(error)


def test_an_unknown_code_becomes_the_root() -> None:
    read = StokerError.from_wire({"code": "of_a_later_release", "cause": "Such.", "details": 3})
    assert type(read) is StokerError
    assert str(read) == "Such."


def test_an_error_reads_as_its_cause_and_remedy() -> None:
    assert str(StokerError("Expected a, found b.", "Give a.")) == "Expected a, found b. Give a."
    assert str(StokerError("Expected a, found b.")) == "Expected a, found b."
