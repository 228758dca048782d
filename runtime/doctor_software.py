"""Checks of the installation: Python, the packages that Stoker needs, its own native module."""

from __future__ import annotations

import importlib
import platform
from collections.abc import Callable, Sequence
from importlib import metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from stoker.runtime.doctor_check import Check

PYTHON = "Python"
PACKAGES = "packages"
NATIVE_MODULE = "native module"
_SHOWN = ("torch", "transformers", "safetensors")


def check_python(version: str | None = None, wanted: str | None = None) -> Check:
    """Whether the interpreter is one that this release supports."""
    found_version = version or platform.python_version()
    specifier = wanted or metadata.metadata("stoker")["Requires-Python"] or ""
    found = f"Python {found_version} is running; Stoker wants {specifier}."
    if SpecifierSet(specifier).contains(found_version, prereleases=True):
        return Check(PYTHON, "ok", found)
    return Check(PYTHON, "fail", found, f"Install Stoker with a Python {specifier}.")


def check_packages(
    requirements: Sequence[str] | None = None,
    version_of: Callable[[str], str] = metadata.version,
) -> Check:
    """Whether each package is there in a supported version; nothing is imported for it."""
    texts = metadata.requires("stoker") or [] if requirements is None else requirements
    wanted = [needed for text in texts if _needed(needed := Requirement(text))]
    wrong = [said for requirement in wanted if (said := _wrong(requirement, version_of))]
    if wrong:
        remedy = "Install Stoker again with its constraints: `pip install -c constraints.txt .`"
        return Check(PACKAGES, "fail", f"{'; '.join(wrong)}.", remedy)
    shown = [f"{each.name} {version_of(each.name)}" for each in wanted if each.name in _SHOWN]
    found = f"All {len(wanted)} packages are in place, among them {', '.join(shown)}."
    return Check(PACKAGES, "ok", found)


def _needed(requirement: Requirement) -> bool:
    """Not of an extra, nor for another platform."""
    return requirement.marker is None or requirement.marker.evaluate({"extra": ""})


def _wrong(requirement: Requirement, version_of: Callable[[str], str]) -> str:
    """What is wrong with the package, else an empty string."""
    try:
        version = version_of(requirement.name)
    except metadata.PackageNotFoundError:
        return f"{requirement.name} is missing"
    if requirement.specifier.contains(version, prereleases=True):
        return ""
    return f"{requirement.name} is {version}, but {requirement.specifier} is supported"


def check_native_module(name: str = "stoker.native") -> Check:
    """Whether the compiled loader can be loaded by this interpreter."""
    try:
        importlib.import_module(name)
    except ImportError as error:
        return Check(
            NATIVE_MODULE,
            "fail",
            f"The native module {name} cannot be imported: {error}.",
            "Install Stoker again with this Python; building it needs a C++20 compiler.",
        )
    return Check(NATIVE_MODULE, "ok", f"{name} loads on {platform.machine()}.")
