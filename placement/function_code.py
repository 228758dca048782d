"""Which kind of function a folder of code is: one rule for the gateway and the nodes.

The first of these files that exists decides, unless the annotation `stoker/handler` does:

    handler.py                                        openfaas: handle(event, context)
    main.py                                           functions-framework: @http, @cloud_event, …
    func.py, function/func.py, function/__init__.py   knative: new(), or handle as ASGI
    none of them                                      process: fprocess, once per request
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, get_args

HandlerKind = Literal["openfaas", "functions-framework", "knative", "process"]

HANDLER_KINDS: tuple[HandlerKind, ...] = get_args(HandlerKind)
HANDLER_KEY = "stoker/handler"

_ENTRIES: tuple[tuple[str, HandlerKind], ...] = (
    ("handler.py", "openfaas"),
    ("function/handler.py", "openfaas"),
    ("main.py", "functions-framework"),
    ("func.py", "knative"),
    ("function/func.py", "knative"),
    ("function/__init__.py", "knative"),
)


def entry_file(kind: HandlerKind, exists: Callable[[str], bool]) -> str | None:
    """The first file by which code is of `kind`, relative to its folder."""
    return next((name for name, of in _ENTRIES if of == kind and exists(name)), None)


def kind_of_code(exists: Callable[[str], bool]) -> HandlerKind:
    """What the code is by its files alone; `exists` is asked for paths relative to its folder."""
    return next((kind for name, kind in _ENTRIES if exists(name)), "process")


def kind_in(folder: Path, annotations: Mapping[str, str]) -> HandlerKind:
    """What the code in `folder` is, by the annotation or else by its files."""
    return stated_kind(annotations) or kind_of_code(lambda name: (folder / name).is_file())


def stated_kind(annotations: Mapping[str, str]) -> HandlerKind | None:
    """What the annotation of a checked spec says."""
    return next((kind for kind in HANDLER_KINDS if annotations.get(HANDLER_KEY) == kind), None)
