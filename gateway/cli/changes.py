"""What a deployment would change of a deployed function, line by line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_TEXTS = ("image", "envProcess")
_MAPPINGS = ("labels", "annotations", "envVars", "limits", "requests")
_LISTS = ("secrets", "constraints")
# The gateway's own, whatever is deployed.
_ADDED_LABELS = ("faas_function",)


@dataclass(frozen=True, slots=True)
class Difference:
    """One field; `before` is None for one that is new, `after` for one that goes."""

    field: str
    before: str | None
    after: str | None

    @property
    def sign(self) -> str:
        if self.before is None:
            return "+"
        return "-" if self.after is None else "~"

    def __str__(self) -> str:
        if self.before is None or self.after is None:
            return f"{self.sign} {self.field}: {self.after or self.before or ''}"
        return f"~ {self.field}: {self.before} -> {self.after}"


def differences(
    status: Mapping[str, Any] | None, deployment: Mapping[str, Any]
) -> list[Difference]:
    """From a FunctionStatus (None: not deployed) to a FunctionDeployment."""
    before = dict(_fields(status or {}))
    after = dict(_fields(deployment))
    return [
        Difference(field, before.get(field), after.get(field))
        for field in dict.fromkeys((*after, *before))
        if before.get(field) != after.get(field)
    ]


def _fields(spec: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name in _TEXTS:
        if spec.get(name):
            yield name, str(spec[name])
    for name in _MAPPINGS:
        for key, value in sorted((spec.get(name) or {}).items()):
            if name != "labels" or key not in _ADDED_LABELS:
                yield f"{name}.{key}", str(value)
    for name in _LISTS:
        for value in spec.get(name) or ():
            yield f"{name}.{value}", ""
    if spec.get("readOnlyRootFilesystem"):
        yield "readOnlyRootFilesystem", "true"
