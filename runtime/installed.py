"""The packages that are installed beside Stoker: what every environment of a function lies over."""

from __future__ import annotations

import hashlib
import platform
import site
import sys
import sysconfig
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata

import orjson
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

# What a worker may import itself, beside what its zygote has imported for it.
_OF_WORKERS = (
    "accelerate",
    "httptools",
    "jinja2",
    "numpy",
    "orjson",
    "packaging",
    "peft",
    "psutil",
    "pyyaml",
    "safetensors",
    "stoker",
    "structlog",
    "tokenizers",
    "torch",
    "transformers",
    "uvicorn",
    "uvloop",
)


@dataclass(frozen=True, slots=True)
class Package:
    version: str
    needs: tuple[Requirement, ...] = ()


@dataclass(frozen=True)
class Installed:
    """Packages by their canonical names; `folders` are the site folders that hold them."""

    packages: Mapping[str, Package]
    folders: tuple[str, ...]

    @staticmethod
    def read() -> Installed:
        """What this interpreter finds; takes some 100 ms."""
        packages: dict[str, Package] = {}
        for each in metadata.distributions():
            if (name := each.name) and _is_version(each.version):
                # Of two with one name, the first is the one that is imported.
                needs = tuple(_requirements(each.requires or ()))
                packages.setdefault(canonicalize_name(name), Package(each.version, needs))
        user_folder = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
        return Installed(packages, (*site.getsitepackages(), *user_folder))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the interpreter and of everything installed: an environment's ground."""
        ground = (
            sys.version,
            sys.prefix,
            sys.base_prefix,
            sysconfig.get_platform(),
            platform.libc_ver(),
            self.folders,
            sorted((name, each.version) for name, each in self.packages.items()),
        )
        return hashlib.sha256(orjson.dumps(ground)).hexdigest()

    def pins(self, imported: Iterable[str]) -> list[str]:
        """Constraints for pip that keep as they are: the packages that a zygote has imported, those
        that a worker may, and what both need.
        """
        pins: dict[str, str] = {}
        waiting = [Requirement(name) for name in (*_OF_WORKERS, *imported)]
        while waiting:
            needed = waiting.pop()
            found = self.packages.get(canonicalize_name(needed.name))
            if found is not None and str(needed) not in pins:
                pins[str(needed)] = f"{canonicalize_name(needed.name)}=={found.version}"
                # Much of what Stoker as a whole needs is used by its agent and gateway alone.
                waiting += self._needs_of(needed) if needed.name != "stoker" else ()
        return sorted(set(pins.values()))

    def satisfies(self, wanted: Iterable[Requirement]) -> bool:
        """Whether everything wanted is there, with the extras, in a version that will do."""
        waiting = [each for each in wanted if each.marker is None or each.marker.evaluate()]
        seen: set[str] = set()
        while waiting:
            needed = waiting.pop()
            found = self.packages.get(canonicalize_name(needed.name))
            if needed.url is not None or found is None:
                return False
            if not needed.specifier.contains(found.version, prereleases=True):
                return False
            if needed.extras and str(needed) not in seen:
                seen.add(str(needed))
                waiting += self._needs_of(needed)
        return True

    def _needs_of(self, requirement: Requirement) -> Iterator[Requirement]:
        """What the package needs for itself and for the extras that are asked of it."""
        for needed in self.packages[canonicalize_name(requirement.name)].needs:
            marker = needed.marker
            if marker is None or any(
                marker.evaluate({"extra": extra}) for extra in ("", *requirement.extras)
            ):
                yield needed


def owners_of(modules: Collection[str]) -> set[str]:
    """The names of the packages that these top-level modules belong to; takes some 100 ms."""
    owners = metadata.packages_distributions()
    return {canonicalize_name(owner) for module in modules for owner in owners.get(module, ())}


def _is_version(text: str) -> bool:
    try:
        Version(text)
    except (InvalidVersion, TypeError):
        return False
    return True


def _requirements(texts: Iterable[str]) -> Iterator[Requirement]:
    for text in texts:
        try:
            yield Requirement(text)
        except InvalidRequirement:  # of a package that pip could not read either
            continue
