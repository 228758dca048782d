"""What `stoker deploy -f` takes: a stack file, Knative Services, or a func.yaml."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from stoker.gateway.cli.func_yaml import from_func_yaml
from stoker.gateway.cli.knative_service import from_service
from stoker.gateway.cli.stack import StackFunction, load_stack
from stoker.gateway.cli.yaml_fields import FILE_BYTES_MAXIMUM, read_documents

_SERVICE = re.compile(rb"^apiVersion\s*:", re.MULTILINE)
_FUNC_YAML = re.compile(rb"^specVersion\s*:", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Manifest:
    """The functions of a file, in its order; `notes` are on what in it changes nothing here."""

    functions: tuple[StackFunction, ...]
    notes: tuple[str, ...] = ()


def load_manifest(path: Path) -> Manifest:
    """The functions in the file at `path`; BadSpec with file and line for what is wrong in it.

    Which kind of file it is, a key at its top says. A stack file is no YAML yet, but a text with
    variables to fill in, so the text is looked at.
    """
    try:
        with path.open("rb") as file:
            text = file.read(FILE_BYTES_MAXIMUM)
    except OSError:
        text = b""  # who reads it in full says why it cannot be read
    if _SERVICE.search(text):
        return Manifest(tuple(from_service(document) for document in read_documents(path)))
    if _FUNC_YAML.search(text):
        first, *others = read_documents(path)
        for other in others:
            other.wrong("Expected one function, found another document")
        function, notes = from_func_yaml(first, path)
        return Manifest((function,), notes)
    return Manifest(load_stack(path).functions)
