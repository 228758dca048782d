"""Places of a YAML file that know where they are, so that every complaint names file and line."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NoReturn

import yaml

from stoker.placement.errors import BadSpec

FILE_BYTES_MAXIMUM = 1 << 20
DOCUMENTS_MAXIMUM = 100


class Field:
    """One place: `where` is its path from the top, as in spec.template."""

    def __init__(self, file: Path, node: yaml.Node, where: str = "") -> None:
        self._file = file
        self._node = node
        self.where = where

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing: null, {} or []."""
        if isinstance(self._node, yaml.CollectionNode):
            return not self._node.value
        return self._value() is None

    def names(self) -> tuple[str, ...]:
        """The keys of a mapping, none of anything else."""
        if not isinstance(self._node, yaml.MappingNode):
            return ()
        return tuple(key.value for key, _ in self._node.value if isinstance(key, yaml.ScalarNode))

    def fields(
        self, known: Collection[str] = (), refused: Mapping[str, str] | None = None
    ) -> dict[str, Field]:
        """The entries of a mapping; BadSpec unless each is `known`.

        Those that are `refused` are told with what to do instead. Without `known` any may be there.
        """
        if not isinstance(self._node, yaml.MappingNode):
            self.refuse("a mapping")
        entries: dict[str, Field] = {}
        for key_node, value in self._node.value:
            place = Field(self._file, key_node, self.where)
            key = place.text()
            path = f"{self.where}.{key}" if self.where else key
            if key in entries:
                place.wrong(f"Expected each key once, found {path} twice")
            if refused and key in refused:
                place.wrong(f"{path} is not supported", refused[key])
            if known and key not in known:
                nearest = difflib.get_close_matches(key, known, 1)
                remedy = f"Did you mean {nearest[0]!r}?" if nearest else f"Known: {_list(known)}."
                place.wrong(f"Expected a known key, found {path}", remedy)
            entries[key] = Field(self._file, value, path)
        return entries

    def need(self, fields: Mapping[str, Field], key: str) -> Field:
        """The entry `key` of this mapping's `fields`; BadSpec if it is not there."""
        if key not in fields or fields[key].is_empty:
            path = f"{self.where}.{key}" if self.where else key
            self.wrong(f"Expected {path}, found none")
        return fields[key]

    def items(self) -> list[Field]:
        if not isinstance(self._node, yaml.SequenceNode):
            self.refuse("a list")
        return [
            Field(self._file, node, f"{self.where}[{number}]")
            for number, node in enumerate(self._node.value)
        ]

    def text(self) -> str:
        """One value as it is written: true, 1.5."""
        if not isinstance(self._node, yaml.ScalarNode) or self._value() is None:
            self.refuse("a value")
        return str(self._node.value)

    def texts(self) -> dict[str, str]:
        """A mapping of values."""
        return {} if self.is_empty else {key: f.text() for key, f in self.fields().items()}

    def whole(self, least: int, most: int) -> int:
        value = self._value() if isinstance(self._node, yaml.ScalarNode) else None
        if type(value) is not int or not least <= value <= most:
            self.refuse(f"a whole number from {least} to {most}")
        return value

    def flag(self) -> bool:
        value = self._value() if isinstance(self._node, yaml.ScalarNode) else None
        if not isinstance(value, bool):
            self.refuse("true or false")
        return value

    def only(self, *values: str, remedy: str = "") -> str:
        """One of `values`."""
        text = self.text()
        if text not in values:
            self.refuse(" or ".join(values), remedy)
        return text

    def refuse(self, expected: str, remedy: str = "") -> NoReturn:
        if isinstance(self._node, yaml.ScalarNode):
            found = f"{self._node.value!r:.60}"
        else:
            found = "a list" if isinstance(self._node, yaml.SequenceNode) else "a mapping"
        self.wrong(f"Expected {expected} at {self.where or 'the top'}, found {found}", remedy)

    def wrong(self, problem: str, remedy: str = "") -> NoReturn:
        line = self._node.start_mark.line + 1
        raise BadSpec(f"{problem} ({self._file}:{line}).", remedy)

    def _value(self) -> Any:
        loader = yaml.SafeLoader("")
        try:
            return loader.construct_object(self._node)
        except (yaml.YAMLError, ValueError):
            self.wrong("Expected a plain YAML value, found another")
        finally:
            loader.dispose()


def read_documents(path: Path) -> list[Field]:
    """The documents of the file; BadSpec if it is no YAML."""
    try:
        with path.open("rb") as file:
            raw = file.read(FILE_BYTES_MAXIMUM + 1)
        text = raw.decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise BadSpec(
            f"Expected a file at {path}, found: {reason}.", "Name the file with -f."
        ) from error
    if len(raw) > FILE_BYTES_MAXIMUM:
        raise BadSpec(f"Expected at most {FILE_BYTES_MAXIMUM} bytes in {path}, found more.")
    try:
        nodes = [node for node in yaml.compose_all(text, yaml.SafeLoader) if node is not None]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise BadSpec(f"Expected YAML, found: {error.problem} ({where}).") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise BadSpec(f"Expected YAML in {path}, found: {error}.") from error
    if len(nodes) > DOCUMENTS_MAXIMUM:
        raise BadSpec(f"Expected at most {DOCUMENTS_MAXIMUM} documents in {path}, found more.")
    return [Field(path, node) for node in nodes]


def _list(known: Collection[str]) -> str:
    return ", ".join(known)
