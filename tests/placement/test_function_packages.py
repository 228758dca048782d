"""Which packages a folder of code asks for."""

from __future__ import annotations

import pytest

from stoker.placement.errors import BadSpec
from stoker.placement.function_packages import packages_of

PROJECT = b'[project]\nname = "function"\ndependencies = ["httpx", "cloudevents>=2"]\n'
EVENTS = b"name: f\ninvoke: cloudevent\n"


def lines(**files: bytes) -> tuple[str, ...] | None:
    named = {name.replace("_", "."): content for name, content in files.items()}
    found = packages_of(named.get)
    return None if found is None else found.lines


def test_a_project_of_func_states_its_packages_in_pyproject_toml() -> None:
    assert lines(func_yaml=b"name: f\n", pyproject_toml=PROJECT) == ("cloudevents>=2", "httpx")
    assert lines(func_yaml=b"name: f\n") == ()
    assert lines(pyproject_toml=PROJECT) is None
    assert lines(func_yaml=b"name: f\n", pyproject_toml=PROJECT, requirements_txt=b"orjson\n") == (
        "orjson",
    )


def test_one_that_takes_events_gets_their_runtime_unless_it_names_it() -> None:
    assert lines(func_yaml=EVENTS) == ("func-python",)
    assert lines(func_yaml=EVENTS, requirements_txt=b"func-python==0.8.1\n") == (
        "func-python==0.8.1",
    )
    assert lines(requirements_txt=b"orjson\n") == ("orjson",)


@pytest.mark.parametrize(
    "project",
    [b"[project", b"project = 3", b'[project]\ndependencies = "httpx"', b"\xff", b"x" * 300_000],
)
def test_a_project_that_cannot_be_read_is_refused(project: bytes) -> None:
    with pytest.raises(BadSpec, match=r"pyproject\.toml"):
        lines(func_yaml=b"name: f\n", pyproject_toml=project)
