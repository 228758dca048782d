"""Which packages a folder of code asks for: one rule for the gateway and the nodes.

    requirements.txt    if there is one
    pyproject.toml      else, for a project of Knative's func: what [project] depends on

Such a project does not name what runs it: func adds its runtime for events, and so does Stoker.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable

from stoker.placement.errors import BadSpec
from stoker.placement.requirements import (
    REQUIREMENTS_BYTES_MAXIMUM,
    REQUIREMENTS_NAME,
    Requirements,
    read_requirements,
)

PROJECT_NAME = "pyproject.toml"
FUNC_NAME = "func.yaml"
EVENT_RUNTIME = "func-python"

_TAKES_EVENTS = re.compile(rb"^invoke\s*:\s*[\"']?cloudevent\b", re.MULTILINE)
_RUNTIME_NAMED = re.compile(rf"^{EVENT_RUNTIME}(?![-\w.])", re.MULTILINE | re.IGNORECASE)

Read = Callable[[str], bytes | None]
"""The content of a file of the folder, None if it is not there."""


def packages_of(read: Read) -> Requirements | None:
    """What the folder asks for, None if it says nothing; BadSpec naming what is wrong."""
    content = read(REQUIREMENTS_NAME)
    func = read(FUNC_NAME)
    if func is None:
        return None if content is None else read_requirements(content)
    if content is None:
        project = read(PROJECT_NAME)
        content = b"" if project is None else _dependencies(project)
    if _TAKES_EVENTS.search(func) and not _names_runtime(content):
        content += f"\n{EVENT_RUNTIME}\n".encode()
    return read_requirements(content)


def _dependencies(project: bytes) -> bytes:
    """As lines of a requirements.txt."""
    if len(project) > REQUIREMENTS_BYTES_MAXIMUM:
        raise BadSpec(
            f"Expected at most {REQUIREMENTS_BYTES_MAXIMUM} bytes in {PROJECT_NAME}, "
            f"found {len(project)}.",
            "Name the packages alone.",
        )
    try:
        fields = tomllib.loads(project.decode()).get("project", {})
        found = fields.get("dependencies", [])
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, AttributeError, RecursionError) as error:
        raise BadSpec(
            f"Expected TOML with a table [project] in {PROJECT_NAME}, found: {error}.",
            "Correct it and deploy again.",
        ) from error
    if not isinstance(found, list) or not all(isinstance(line, str) for line in found):
        raise BadSpec(
            f"Expected a list of packages at project.dependencies of {PROJECT_NAME}, "
            f"found {found!r:.100}.",
            "Correct it and deploy again.",
        )
    return "\n".join(line.replace("\n", " ") for line in found).encode()


def _names_runtime(content: bytes) -> bool:
    return bool(_RUNTIME_NAMED.search(content.decode("utf-8", "replace")))
