"""Python, packages and the native module."""

import sys
from importlib import metadata
from pathlib import Path

import pytest

from stoker.runtime.doctor_software import check_native_module, check_packages, check_python

REQUIREMENTS = ["torch<3,>=2.9", "transformers==5.23.*", 'pytest>=9; extra == "dev"']


def versions(**known: str):
    def version_of(name: str) -> str:
        if name not in known:
            raise metadata.PackageNotFoundError(name)
        return known[name]

    return version_of


def test_this_python_is_supported() -> None:
    assert check_python().state == "ok"


@pytest.mark.parametrize(("version", "expected"), [("3.11.0", "ok"), ("3.10.9", "fail")])
def test_an_older_python_fails(version: str, expected: str) -> None:
    assert check_python(version, ">=3.11").state == expected


def test_this_installation_is_complete() -> None:
    check = check_packages()

    assert check.state == "ok"
    assert "transformers 5." in check.found


def test_supported_versions_are_named_and_extras_not_missed() -> None:
    check = check_packages(REQUIREMENTS, versions(torch="2.13.0+cpu", transformers="5.23.1"))

    assert check.state == "ok"
    assert "All 2 packages" in check.found
    assert "torch 2.13.0+cpu" in check.found


def test_another_minor_release_of_transformers_fails() -> None:
    check = check_packages(REQUIREMENTS, versions(torch="2.13.0", transformers="5.24.0"))

    assert check.state == "fail"
    assert "transformers is 5.24.0, but ==5.23.* is supported" in check.found
    assert "constraints.txt" in check.remedy


def test_a_missing_package_fails() -> None:
    check = check_packages(REQUIREMENTS, versions(transformers="5.23.0"))

    assert (check.state, "torch is missing" in check.found) == ("fail", True)


def test_the_native_module_loads() -> None:
    assert check_native_module().state == "ok"


def test_a_native_module_of_another_machine_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_core.so").write_bytes(b"no machine code")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])

    check = check_native_module("broken_core")
    assert check.state == "fail"
    assert "C++20" in check.remedy
