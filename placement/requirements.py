"""requirements.txt in the code of a function: one rule for the gateway and the nodes.

A line is a package as pip writes it (`name==1.0`, `name[extra]>=2; marker`, `name @ https://…`),
with `--hash` options or without, or one of the options below. What refers to other files is
refused: the lines alone say what an environment is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from stoker.placement.errors import BadSpec

REQUIREMENTS_NAME = "requirements.txt"
REQUIREMENTS_BYTES_MAXIMUM = 256 * 1024

_URL_OPTIONS = {
    "-i": "--index-url",
    "--index-url": "--index-url",
    "--extra-index-url": "--extra-index-url",
    "-f": "--find-links",
    "--find-links": "--find-links",
}
_FORMAT_OPTIONS = ("--only-binary", "--no-binary")
_FLAGS = ("--no-index", "--pre", "--prefer-binary", "--require-hashes")
_INDEX_SCHEMES = ("https", "http")
_PACKAGE_SCHEMES = ("https", "http", "git+https")

_COMMENT = re.compile(r"(^|\s)#.*$")
_HASH = re.compile(r"\s--hash[= ]\s*(sha(?:256|384|512):[0-9a-f]+)(?=\s|$)")
_FORMATS = re.compile(r"[A-Za-z0-9._,:-]+")
_CREDENTIALS = re.compile(r"//[^/@\s]+@")


@dataclass(frozen=True, slots=True)
class Requirements:
    """`lines` are what pip gets: the same for the same content, whatever its order and style."""

    lines: tuple[str, ...]
    packages: tuple[Requirement, ...]


def read_requirements(content: bytes) -> Requirements:
    """What requirements.txt asks for; BadSpec names the first line that is refused."""
    if len(content) > REQUIREMENTS_BYTES_MAXIMUM:
        raise BadSpec(
            f"Expected at most {REQUIREMENTS_BYTES_MAXIMUM} bytes in {REQUIREMENTS_NAME}, "
            f"found {len(content)}.",
            "Name the packages alone.",
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadSpec(
            f"Expected UTF-8 in {REQUIREMENTS_NAME}, found: {error.reason} at byte {error.start}.",
            "Save it as UTF-8.",
        ) from error
    options: dict[str, None] = {}
    packages: dict[str, Requirement] = {}
    for number, line in _logical_lines(text):
        if "${" in line:
            raise BadSpec(
                f"Expected no ${{VARIABLE}} in line {number} of {REQUIREMENTS_NAME}, found one.",
                "Write its value; nodes have indexes of their own in pip's settings.",
            )
        if line.startswith("-"):
            options[_option(line, number)] = None
        else:
            written, package = _package(line, number)
            packages[written] = package
    names = sorted(packages)
    return Requirements((*options, *names), tuple(packages[name] for name in names))


def without_credentials(text: str) -> str:
    """The text with the user part of each URL hidden."""
    return _CREDENTIALS.sub("//****@", text)


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines without comments, joined where a backslash ends one; with the number of the last."""
    joined = ""
    number = 0
    for number, line in enumerate(text.splitlines(), 1):
        bare = _COMMENT.sub("", line).rstrip()
        if bare.endswith("\\"):
            joined += bare[:-1] + " "
            continue
        if whole := (joined + bare).strip():
            yield number, whole
        joined = ""
    if whole := joined.strip():
        yield number, whole


def _option(line: str, number: int) -> str:
    name, _, value = re.sub(r"[=\s]\s*", " ", line, count=1).partition(" ")
    value = value.strip()
    if name in _FLAGS and not value:
        return name
    if name in _FORMAT_OPTIONS and _FORMATS.fullmatch(value):
        return f"{name} {value}"
    if name in _URL_OPTIONS and value:
        _check_url(value, _INDEX_SCHEMES, number)
        return f"{_URL_OPTIONS[name]} {value}"
    known = ", ".join((*_FLAGS, *_FORMAT_OPTIONS, *dict.fromkeys(_URL_OPTIONS.values())))
    raise BadSpec(
        f"Expected a package or one of the options {known} in line {number} of "
        f"{REQUIREMENTS_NAME}, found {without_credentials(line)!r:.120}.",
        "Write the packages of other files into this one.",
    )


def _package(line: str, number: int) -> tuple[str, Requirement]:
    """The line as it is given to pip, and the package in it."""
    hashes = sorted(_HASH.findall(line))
    try:
        package = Requirement(_HASH.sub(" ", line).strip())
    except InvalidRequirement as error:
        raise BadSpec(
            f"Expected a package such as name==1.0 in line {number} of {REQUIREMENTS_NAME}, "
            f"found {without_credentials(line)!r:.120}.",
            "Write it as in PEP 508; an archive is written `name @ https://…`.",
        ) from error
    package.name = canonicalize_name(package.name)
    if package.url is not None:
        _check_url(package.url, _PACKAGE_SCHEMES, number)
    return " ".join([str(package), *(f"--hash={each}" for each in hashes)]), package


def _check_url(url: str, schemes: tuple[str, ...], number: int) -> None:
    try:
        parts = urlsplit(url)
        valid = parts.scheme in schemes and bool(parts.hostname) and " " not in url
    except ValueError:
        valid = False
    if not valid:
        raise BadSpec(
            f"Expected a URL of {' or '.join(schemes)} in line {number} of {REQUIREMENTS_NAME}, "
            f"found {without_credentials(url)!r:.120}.",
            "Correct it, or put the package into an index.",
        )
