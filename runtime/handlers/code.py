"""Finds and imports the user's code; whatever is wrong with it is a StartFailed that says so."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from stoker.placement.errors import StartFailed, StokerError


def import_file(path: Path, name: str) -> ModuleType:
    """Runs `path` as the module `name`; its folder and the one above are where it may import from.

    The function's folder is the one above if `path` lies in `function/`, as in OpenFaaS' images.
    """
    sys.path[:0] = [str(path.parent), str(path.parent.parent)]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise StartFailed(
            f"Expected {path.name} to be importable, found that it is not.",
            "Deploy Python source code.",
        )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    with expecting(f"{path.name} to be imported"):
        spec.loader.exec_module(module)
    return module


def import_from(folder: Path, name: str) -> ModuleType:
    """Imports the module or package `name` of `folder`."""
    sys.path.insert(0, str(folder))
    with expecting(f"{name} to be imported"):
        return importlib.import_module(name)


@contextmanager
def expecting(what: str) -> Iterator[None]:
    """Turns whatever user code raises before it serves into a StartFailed."""
    try:
        yield
    except StokerError:
        raise
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        raise StartFailed(
            f"Expected {what}, found {type(error).__name__}: {error}.",
            "The function's log has the traceback.",
        ) from error


def listing(folder: Path) -> str:
    """What lies in `folder`, for an error."""
    return ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
