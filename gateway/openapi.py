"""The OpenAPI document: `base.yaml` and the paths of every other file in `gateway/api`.

A route is added to the file of its family; a new family is a new file. Who forgets it is told by
tests/gateway/test_openapi.py, which compares the document with the routes that are served.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import orjson
import yaml

import stoker

FOLDER = Path(__file__).with_name("api")
METHODS = ("get", "post", "put", "patch", "delete", "head", "options")
# What is served at the one prefix is served at the other too.
ALIASES = {"/v1/": "/openai/v1/"}


@functools.cache
def document() -> bytes:
    """The document as JSON."""
    return orjson.dumps(merged())


def merged() -> dict[str, Any]:
    """The document: the files' paths, tags and components side by side."""
    whole = _read("base.yaml")
    whole["info"]["version"] = stoker.__version__
    paths: dict[str, Any] = whole.setdefault("paths", {})
    for file in sorted(FOLDER.glob("*.yaml")):
        if file.name == "base.yaml":
            continue
        part = _read(file.name)
        paths |= part["paths"]
        for kind, known in part.get("components", {}).items():
            whole["components"].setdefault(kind, {}).update(known)
    for prefix, alias in ALIASES.items():
        for path in [path for path in paths if path.startswith(prefix)]:
            paths[alias + path.removeprefix(prefix)] = _without_ids(paths[path])
    whole["paths"] = dict(sorted(paths.items()))
    return whole


def _read(name: str) -> dict[str, Any]:
    loaded = yaml.load((FOLDER / name).read_text(encoding="utf-8"), yaml.CSafeLoader)
    assert isinstance(loaded, dict)
    return loaded


def _without_ids(item: dict[str, Any]) -> dict[str, Any]:
    """The same operations without their ids, each of which may stand in the document once."""
    return {
        key: {k: v for k, v in value.items() if k != "operationId"} if key in METHODS else value
        for key, value in item.items()
    }
