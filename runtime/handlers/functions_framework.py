"""Functions for Google's functions-framework, run by the real package.

The package comes with the function's environment. It imports the function, finds its signature
(http, cloudevent, typed) and answers with a Flask app, or a Starlette app for `aio` functions.
"""

from __future__ import annotations

import ast
import importlib
import os
import sys
from pathlib import Path

from stoker.placement.errors import StartFailed
from stoker.runtime.handlers.asgi import AsgiHandler
from stoker.runtime.handlers.code import expecting, listing
from stoker.runtime.handlers.events import EventHandler, as_binary, as_decoded
from stoker.runtime.handlers.http import Handler
from stoker.runtime.handlers.wsgi import WsgiHandler

_DECORATORS = {"http", "cloud_event", "typed"}
# Its SDK decodes no header. A function of HTTP gets what was sent, events too.
_FORMS = {"cloudevent": as_decoded, "typed": as_binary}


def load(code_dir: Path, concurrency: int) -> Handler:
    """The function in main.py (or FUNCTION_SOURCE) of `code_dir`; StartFailed if it has none."""
    source = code_dir / os.environ.get("FUNCTION_SOURCE", "main.py")
    if not source.is_file():
        raise StartFailed(
            f"Expected {source.name} in the function's code, found {listing(code_dir)}.",
            "Put the function into main.py, or name its file in FUNCTION_SOURCE.",
        )
    target = os.environ.get("FUNCTION_TARGET") or _only_target(source)
    sys.path.insert(0, str(source.parent))
    with expecting(f"{source.name} to be imported by functions-framework"):
        framework = importlib.import_module("functions_framework")
        app = framework.create_app(target, str(source))
    # Flask, unless the function is one of functions_framework.aio.
    wsgi = hasattr(app, "wsgi_app")
    handler: Handler = WsgiHandler(app, concurrency) if wsgi else AsgiHandler(app)
    # The framework says there what it found that the function takes.
    form = _FORMS.get(os.environ.get("FUNCTION_SIGNATURE_TYPE", "http"))
    return EventHandler(handler, form, only_events=True) if form else handler


def _only_target(source: Path) -> str:
    """The one function of `source` with a decorator of functions-framework."""
    with expecting(f"{source.name} to be Python"):
        module = ast.parse(source.read_bytes())
    found = [
        statement.name
        for statement in module.body
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef)
        and any(_name(decorator) in _DECORATORS for decorator in statement.decorator_list)
    ]
    if len(found) != 1:
        raise StartFailed(
            "Expected one function with a decorator of functions_framework in "
            f"{source.name}, found {', '.join(found) or 'none'}.",
            "Name the function in the environment variable FUNCTION_TARGET.",
        )
    return found[0]


def _name(decorator: ast.expr) -> str:
    """The last part of `@a.b.name` or `@a.b.name(...)`."""
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    if isinstance(called, ast.Attribute):
        return called.attr
    return called.id if isinstance(called, ast.Name) else ""
