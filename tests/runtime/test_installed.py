from __future__ import annotations

from dataclasses import replace

import pytest
from packaging.requirements import Requirement

from stoker.runtime.installed import Installed, Package, owners_of


def package(version: str, *needs: str) -> Package:
    return Package(version, tuple(Requirement(need) for need in needs))


INSTALLED = Installed(
    {
        "torch": package("2.9.0+cpu", "numpy", 'setuptools; python_version < "3"'),
        "numpy": package("2.1.0"),
        "setuptools": package("80.0"),
        "uvicorn": package("0.40", 'colorlog; extra == "standard"'),
        "colorlog": package("6.0"),
        "boto3": package("1.43"),
        "loop": package("1.0", 'loop[b]; extra == "a"', 'loop[a]; extra == "b"'),
        "half": package("1.0", 'absent; extra == "more"'),
        "pre": package("2.0rc1"),
    },
    ("/site",),
)


def test_what_a_worker_imports_and_needs_is_pinned_and_nothing_else() -> None:
    assert INSTALLED.pins([]) == ["numpy==2.1.0", "torch==2.9.0+cpu", "uvicorn==0.40"]
    assert set(INSTALLED.pins(["pre", "absent"])) - set(INSTALLED.pins([])) == {"pre==2.0rc1"}


@pytest.mark.parametrize(
    "wanted",
    [
        "boto3",
        "boto3>=1,<2",
        "torch==2.9.0",
        "uvicorn[standard]",
        "absent; python_version < '3'",
        "loop[a]",
        "pre>=2.0rc1",
        "half",
    ],
)
def test_a_package_that_is_there_satisfies(wanted: str) -> None:
    assert INSTALLED.satisfies([Requirement(wanted)])


@pytest.mark.parametrize(
    "wanted",
    ["absent", "boto3>=2", "boto3!=1.43", "half[more]", "boto3 @ https://host/boto3-1.43.whl"],
)
def test_a_package_that_is_not_quite_there_does_not(wanted: str) -> None:
    assert not INSTALLED.satisfies([Requirement("numpy"), Requirement(wanted)])


def test_any_change_of_what_is_installed_changes_the_fingerprint() -> None:
    more = replace(INSTALLED, packages={**INSTALLED.packages, "boto3": package("1.44")})
    moved = replace(INSTALLED, folders=("/elsewhere",))
    same = replace(INSTALLED, packages=dict(reversed(INSTALLED.packages.items())))

    assert len({each.fingerprint for each in (INSTALLED, more, moved)}) == 3
    assert same.fingerprint == INSTALLED.fingerprint


def test_this_installation_is_read_with_stoker_and_its_worker_pinned() -> None:
    installed = Installed.read()
    names = {pin.partition("==")[0] for pin in installed.pins([])}

    assert {"stoker", "torch", "transformers", "huggingface-hub", "uvicorn"} <= names
    assert not {"boto3", "aiohttp", "kazoo", "gunicorn", "flask"} & names
    assert installed.satisfies([Requirement("pytest>=9"), Requirement("httpx2")])


def test_modules_are_traced_to_the_packages_that_they_belong_to() -> None:
    assert owners_of(["sys", "yaml", "orjson", "nothing_of_that_name"]) == {"pyyaml", "orjson"}
