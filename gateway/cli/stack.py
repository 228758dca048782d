"""Reads a plain OpenFaaS stack.yaml; every complaint names its file and line."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from stoker.placement.errors import BadSpec

STACK_BYTES_MAXIMUM = 1 << 20
_TOP_KEYS = ("version", "provider", "functions", "configuration")
_STRINGS = ("lang", "handler", "image", "fprocess", "namespace", "platforms", "name")
_MAPPINGS = ("environment", "labels", "annotations", "limits", "requests", "build_args")
_LISTS = ("secrets", "constraints", "environment_file", "build_options")
_BOOLEANS = ("readonly_root_filesystem", "skip_build")
_FUNCTION_KEYS = (*_STRINGS, *_MAPPINGS, *_LISTS, *_BOOLEANS, "build_secrets")
_NAME = re.compile(r"[a-zA-Z0-9][-a-zA-Z0-9_]*")
_VARIABLE = re.compile(r"(\$?)\$\{([A-Za-z_][A-Za-z0-9_]*)(?:(:?-)([^}]*))?\}")


@dataclass(frozen=True, slots=True)
class StackFunction:
    """One function of a stack file; paths are absolute, values are strings."""

    name: str
    lang: str
    image: str
    handler: Path | None
    template: Path | None
    environment: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    limits: Mapping[str, str] = field(default_factory=dict)
    requests: Mapping[str, str] = field(default_factory=dict)
    build_args: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()
    constraints: tuple[str, ...] = ()
    env_process: str = ""
    namespace: str = ""
    read_only_root_filesystem: bool = False
    skip_build: bool = False

    @property
    def needs_build(self) -> bool:
        """Whether its handler folder travels to the gateway before it is deployed."""
        built_elsewhere = self.lang in ("", "dockerfile") or self.skip_build
        return self.handler is not None and not built_elsewhere

    def deployment(self) -> dict[str, Any]:
        """The FunctionDeployment object of the OpenFaaS API; what is empty is left out."""
        optional: dict[str, Any] = {
            "namespace": self.namespace,
            "envProcess": self.env_process,
            "envVars": dict(self.environment),
            "labels": dict(self.labels),
            "annotations": dict(self.annotations),
            "limits": dict(self.limits),
            "requests": dict(self.requests),
            "secrets": list(self.secrets),
            "constraints": list(self.constraints),
            "readOnlyRootFilesystem": self.read_only_root_filesystem,
        }
        present = {key: value for key, value in optional.items() if value}
        return {"service": self.name, "image": self.image, **present}


@dataclass(frozen=True, slots=True)
class Stack:
    """A stack file: the functions in its order, and the gateway it names ("" if none)."""

    path: Path
    functions: tuple[StackFunction, ...]
    gateway: str = ""


def load_stack(path: Path, environment: Mapping[str, str] | None = None) -> Stack:
    """The stack in the file at `path`; BadSpec with file and line for what is wrong in it."""
    try:
        with path.open("rb") as file:
            raw = file.read(STACK_BYTES_MAXIMUM + 1)
        text = raw.decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise BadSpec(
            f"Expected a stack file at {path}, found: {reason}.",
            "Name the file with -f.",
        ) from error
    if len(raw) > STACK_BYTES_MAXIMUM:
        raise BadSpec(f"Expected at most {STACK_BYTES_MAXIMUM} bytes in {path}, found more.")
    substituted = substitute(text, os.environ if environment is None else environment)
    return _Reader(path, substituted).stack()


def substitute(text: str, environment: Mapping[str, str]) -> str:
    """`${NAME}` and `${NAME:-default}` filled in; `$${` is a plain `${`.

    As in faas-cli, a variable that is not set and has no default becomes the empty string.
    """

    def value(match: re.Match[str]) -> str:
        escaped, name, operator, default = match.groups()
        if escaped:
            return match.group(0)[1:]
        found = environment.get(name)
        use_default = found is None or (operator == ":-" and not found)
        return (default or "") if use_default else str(found)

    return _VARIABLE.sub(value, text)


class _Reader:
    """Walks the YAML nodes, which know their lines, and takes the values as it checks them."""

    def __init__(self, path: Path, text: str) -> None:
        self._path = path
        self._folder = path.resolve().parent
        self._text = text

    def stack(self) -> Stack:
        try:
            root = yaml.compose(self._text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            where = f"{self._path}:{mark.line + 1}" if mark else str(self._path)
            raise BadSpec(f"Expected YAML, found: {error.problem} ({where}).") from error
        except yaml.YAMLError as error:
            raise BadSpec(f"Expected YAML in {self._path}, found: {error}.") from error
        if root is None:
            raise BadSpec(f"Expected functions, found an empty file ({self._path}).")
        top = self._mapping(root, "the stack file", _TOP_KEYS)
        functions = top.get("functions")
        if functions is None:
            raise self._wrong(root, "Expected the key `functions`, found none")
        entries = self._mapping(functions, "functions")
        provider = self._mapping(top["provider"], "provider") if "provider" in top else {}
        gateway = provider.get("gateway")
        return Stack(
            path=self._path,
            functions=tuple(self._function(name, node) for name, node in entries.items()),
            gateway=self._text_of(gateway, "provider.gateway") if gateway is not None else "",
        )

    def _function(self, name: str, node: yaml.Node) -> StackFunction:
        where = f"functions.{name}"
        if not _NAME.fullmatch(name):
            raise self._wrong(
                node,
                f"Expected a name of letters, digits, - and _, found {name!r}",
                "The namespace has its own key: `namespace`.",
            )
        fields = self._mapping(node, where, _FUNCTION_KEYS)
        strings = {
            key: self._text_of(fields[key], f"{where}.{key}") for key in _STRINGS if key in fields
        }
        mappings = {key: self._strings_of(fields.get(key), f"{where}.{key}") for key in _MAPPINGS}
        lists = {key: self._list_of(fields.get(key), f"{where}.{key}") for key in _LISTS}
        flags = {key: self._flag_of(fields.get(key), f"{where}.{key}") for key in _BOOLEANS}
        for file_name in lists["environment_file"]:
            from_file = self._environment_file(fields["environment_file"], file_name)
            mappings["environment"] = from_file | mappings["environment"]
        lang = strings.get("lang", "")
        template = self._folder / "template" / lang
        return StackFunction(
            name=name,
            lang=lang,
            image=strings.get("image") or f"{name}:latest",
            handler=self._handler(fields.get("handler"), strings.get("handler", ""), lang),
            template=template if lang and template.is_dir() else None,
            environment=mappings["environment"],
            labels=mappings["labels"],
            annotations=self._with_absolute_folders(fields, mappings["annotations"]),
            limits=mappings["limits"],
            requests=mappings["requests"],
            build_args=mappings["build_args"],
            secrets=tuple(lists["secrets"]),
            constraints=tuple(lists["constraints"]),
            env_process=strings.get("fprocess", ""),
            namespace=strings.get("namespace", ""),
            read_only_root_filesystem=flags["readonly_root_filesystem"],
            skip_build=flags["skip_build"],
        )

    def _handler(self, node: yaml.Node | None, handler: str, lang: str) -> Path | None:
        if node is None or not handler or lang in ("", "dockerfile"):
            return None
        folder = (self._folder / handler).resolve()
        if not folder.is_dir():
            raise self._wrong(node, f"Expected a handler folder at {folder}, found none")
        return folder

    def _with_absolute_folders(
        self, fields: Mapping[str, yaml.Node], annotations: dict[str, str]
    ) -> dict[str, str]:
        """Paths relative to the stack file, of model and adapter, as the URIs they mean."""
        absolute = dict(annotations)
        for key in ("stoker/model", "stoker/adapter"):
            place = annotations.get(key, "")
            if place.startswith("file://") and not place.startswith("file:///"):
                raise self._wrong(
                    fields["annotations"],
                    f"Expected an absolute file:// URI in {key}, found {place!r}",
                    "Write file:///folder, or ./folder for one beside the stack file.",
                )
            if place and "://" not in place:
                absolute[key] = (self._folder / Path(place).expanduser()).resolve().as_uri()
        return absolute

    def _environment_file(self, node: yaml.Node, name: str) -> dict[str, str]:
        path = self._folder / name
        try:
            document = yaml.safe_load(path.read_text())
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise self._wrong(node, f"Expected YAML at {path}, found: {error}") from error
        values = (document or {}).get("environment") if isinstance(document, dict) else None
        if not isinstance(values, dict):
            raise self._wrong(node, f"Expected the key `environment` in {path}, found none")
        return {str(key): _as_text(value) for key, value in values.items()}

    def _mapping(
        self, node: yaml.Node, where: str, known: Collection[str] = ()
    ) -> dict[str, yaml.Node]:
        if not isinstance(node, yaml.MappingNode):
            raise self._wrong(node, f"Expected a mapping in {where}, found {_kind(node)}")
        entries: dict[str, yaml.Node] = {}
        for key_node, value in node.value:
            key = self._text_of(key_node, where)
            if key in entries:
                raise self._wrong(
                    key_node, f"Expected each key of {where} once, found {key!r} twice"
                )
            if known and key not in known:
                nearest = difflib.get_close_matches(key, known, 1)
                raise self._wrong(
                    key_node,
                    f"Expected a known key in {where}, found {key!r}",
                    f"Did you mean {nearest[0]!r}?" if nearest else f"Known: {', '.join(known)}.",
                )
            entries[key] = value
        return entries

    def _text_of(self, node: yaml.Node, where: str) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise self._wrong(node, f"Expected one value in {where}, found {_kind(node)}")
        return _as_text(_construct(node))

    def _strings_of(self, node: yaml.Node | None, where: str) -> dict[str, str]:
        if node is None or _is_null(node):
            return {}
        entries = self._mapping(node, where)
        return {key: self._text_of(value, f"{where}.{key}") for key, value in entries.items()}

    def _list_of(self, node: yaml.Node | None, where: str) -> list[str]:
        if node is None or _is_null(node):
            return []
        if not isinstance(node, yaml.SequenceNode):
            raise self._wrong(node, f"Expected a list in {where}, found {_kind(node)}")
        return [self._text_of(item, where) for item in node.value]

    def _flag_of(self, node: yaml.Node | None, where: str) -> bool:
        value = False if node is None else _construct(node)
        if not isinstance(value, bool):
            assert node is not None
            raise self._wrong(node, f"Expected true or false in {where}, found {value!r}")
        return value

    def _wrong(self, node: yaml.Node, problem: str, remedy: str = "") -> BadSpec:
        return BadSpec(f"{problem} ({self._path}:{node.start_mark.line + 1}).", remedy)


def _construct(node: yaml.Node) -> Any:
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_object(node, deep=True)
    except (yaml.YAMLError, ValueError) as error:
        line = node.start_mark.line + 1
        raise BadSpec(f"Expected a plain YAML value in line {line}, found: {error}.") from error
    finally:
        loader.dispose()


def _as_text(value: Any) -> str:
    """A YAML scalar as the text that OpenFaaS puts on the wire: true, 1.5, "" for null."""
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and _construct(node) is None


def _kind(node: yaml.Node) -> str:
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    return "a mapping" if isinstance(node, yaml.MappingNode) else f"{node.value!r:.40}"
