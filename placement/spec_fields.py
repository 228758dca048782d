"""Reading the fields of a spec: each refusal names the key, what was expected and what found."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NoReturn

from stoker.placement.errors import BadSpec

TEXT_CHARACTERS_MAXIMUM = 512
CHECKPOINT_SCHEMES = ("s3://", "file://")

_DURATION_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_UNIT_SECONDS = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "μs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
}

PREFIX = "stoker/"


def duration_seconds(text: str) -> float | None:
    """Seconds of `90`, `1.5` or a Go duration such as `1h5m30s`; None for anything else."""
    if re.fullmatch(r"\d+(?:\.\d+)?", text, re.ASCII):
        return float(text)
    parts = list(_DURATION_PART.finditer(text))
    if not parts or "".join(part.group() for part in parts) != text:
        return None
    return sum(float(part[1]) * _UNIT_SECONDS[part[2]] for part in parts)


def whole_number(key: str, text: str, least: int, most: int, unit: str) -> int:
    """The number in `text`; BadSpec if it is none between `least` and `most`."""
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII) or not least <= int(text) <= most:
        refuse(key, f"a whole number of {unit} from {least} to {most}", text)
    return int(text)


def number(key: str, text: str, least: float, most: float, unit: str) -> float:
    """The number in `text`; BadSpec if it is none between `least` and `most`."""
    if not re.fullmatch(r"-?\d{1,9}(?:\.\d{1,9})?", text, re.ASCII) or not (
        least <= float(text) <= most
    ):
        refuse(key, f"{unit} from {least:g} to {most:g}", text)
    return float(text)


def text_field(body: Mapping[str, Any], key: str) -> str:
    value = body.get(key)
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > TEXT_CHARACTERS_MAXIMUM or "\0" in value:
        refuse(key, f"a text of at most {TEXT_CHARACTERS_MAXIMUM} characters", value)
    return value


def texts_field(body: Mapping[str, Any], key: str) -> dict[str, str] | None:
    value = body.get(key)
    if value is None:
        return None
    if not isinstance(value, dict):
        refuse(key, "an object of texts", value)
    for name, text in value.items():
        if not isinstance(name, str) or not isinstance(text, str) or "\0" in name + text:
            # The value may be a secret; only its name is told.
            raise BadSpec(f"Expected a text at {key}.{name!s:.100}, found {type(text).__name__}.")
    return dict(value)


def checkpoint_uri(key: str, uri: str | None) -> str | None:
    """A URI of S3 or of a local folder; BadSpec for another one."""
    if uri is None:
        return None
    rest = next((uri.removeprefix(s) for s in CHECKPOINT_SCHEMES if uri.startswith(s)), "")
    if not rest.strip("/") or len(uri) > TEXT_CHARACTERS_MAXIMUM or not uri.isprintable():
        refuse(key, "s3://bucket/prefix or file:///path", uri)
    return uri


def list_field(body: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = body.get(key)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        refuse(key, "a list of texts", value)
    return tuple(value)


def refuse(key: str, expected: str, found: object) -> NoReturn:
    raise BadSpec(f"Expected {expected} at {key}, found {found!r:.100}.", f"Correct {key}.")


class Stated:
    """Keys among labels or annotations, wherever they stand; BadSpec where two contradict."""

    def __init__(self, labels: Mapping[str, str], annotations: Mapping[str, str]) -> None:
        self._places = (labels, annotations)

    def text(self, keys: tuple[str, ...]) -> str | None:
        found = [(key, p[key]) for key in keys for p in self._places if key in p]
        for key, value in found[1:]:
            if value != found[0][1]:
                raise BadSpec(
                    f"Expected one value, found {found[0][0]}: {found[0][1]!r:.40} and "
                    f"{key}: {value!r:.40}.",
                    "Keep one of the two.",
                )
        return found[0][1] if found else None

    def key_of(self, keys: tuple[str, ...]) -> str:
        return next((key for key in keys if any(key in p for p in self._places)), keys[0])

    def whole(self, keys: tuple[str, ...], least: int, most: int, unit: str) -> int | None:
        text = self.text(keys)
        return None if text is None else whole_number(self.key_of(keys), text, least, most, unit)
