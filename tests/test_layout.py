"""The link tree and the installed package: one import name for every file, and nothing missing."""

import importlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import stoker

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("runtime", "gateway", "placement", "native", "deploy")


@pytest.mark.parametrize("name", PACKAGES)
def test_each_folder_is_linked_into_the_one_package(name: str) -> None:
    link = ROOT / ".src" / "stoker" / name
    assert str(link.readlink()) == f"../../{name}"


@pytest.mark.parametrize("name", PACKAGES)
def test_each_package_imports_from_this_checkout(name: str) -> None:
    module = importlib.import_module(f"stoker.{name}")
    assert Path(str(module.__file__)).resolve().parent == ROOT / name


@pytest.mark.parametrize("name", ["runtime", "gateway", "placement", "native", "deploy"])
def test_a_bare_package_name_is_not_importable(name: str, tmp_path: Path) -> None:
    """A second copy under a bare name would have its own classes and its own errors."""
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({name!r}) is not None)"
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False)
    assert ran.returncode == 0


def test_the_public_names_are_exact() -> None:
    loaders = ["load_file", "load_model", "load_tensors"]
    awaited = [f"{name}_async" for name in loaders]
    assert sorted(stoker.__all__) == sorted(["__version__", *loaders, *awaited, "save_file"])
    assert all(getattr(stoker, name) is not None for name in stoker.__all__)


def test_importing_stoker_does_not_import_torch() -> None:
    code = "import stoker, stoker.deploy.main, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_module_and_the_extension_reach_the_wheel(tmp_path: Path) -> None:
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"),
            *("--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), "."),
        ],
        cwd=ROOT,
        check=True,
        timeout=170,
    )
    (wheel,) = tmp_path.glob("stoker-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        f"stoker/{path.relative_to(ROOT)}"
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if "__pycache__" not in path.parts and "tests" not in path.parts
    }
    assert expected - names == set()
    assert "stoker/py.typed" in names
    assert any(name.startswith("stoker/native/_core") and name.endswith(".so") for name in names)
    assert not any(name.endswith((".cpp", ".h", "CMakeLists.txt")) for name in names)
