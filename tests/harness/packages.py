"""Python packages made on the spot, in a folder that pip takes for its only source."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

# Prints what it can see of its builder's environment and what a compiler might say, and fails.
BROKEN_BACKEND = """
import os, sys

def get_requires_for_build_wheel(config_settings=None):
    names = sorted(os.environ)
    for first in range(0, len(names), 6):
        print("names:" + ",".join(names[first : first + 6]))
    print("home:" + os.environ["HOME"])
    print("\\x1b[31mfatal error: widget.h: No such file or directory\\x1b[0m")
    raise SystemExit("no compiler for https://me:secret@host/")

build_wheel = build_sdist = get_requires_for_build_wheel
"""

# Says in the file {begun} that it has begun, starts a process of its own, and never ends.
ENDLESS_BACKEND = """
import os, subprocess, sys, time

def get_requires_for_build_wheel(config_settings=None):
    child = subprocess.Popen(["sleep", "300"])
    with open(r"{begun}.tmp", "w") as file:
        file.write(f"{{os.getpid()}} {{child.pid}}")
    os.rename(r"{begun}.tmp", r"{begun}")
    time.sleep(300)

build_wheel = build_sdist = get_requires_for_build_wheel
"""


def pip_settings(source: Path) -> dict[str, str]:
    """What an operator exports so that pip takes packages from this folder alone."""
    return {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(source),
    }


def write_wheel(
    folder: Path,
    name: str,
    version: str,
    *,
    source: str = "",
    needs: Iterable[str] = (),
    module: str = "",
) -> Path:
    """A wheel of one module, `name` unless named, with a program `name`."""
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    metadata = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}"]
    metadata += [f"Requires-Dist: {need}" for need in needs]
    main = "def main():\n    print(VERSION)\n"
    files = {
        f"{module or name}.py": f"VERSION = {version!r}\n\n{main}\n{source}",
        f"{info}/METADATA": "\n".join(metadata) + "\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[console_scripts]\n{name} = {module or name}:main\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in (*files, f"{info}/RECORD"))
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for member, text in files.items():
            wheel.writestr(member, text)
    return path


def write_sdist(folder: Path, name: str, version: str, backend: str) -> Path:
    """A source archive that is built by its own `backend`, a Python module."""
    folder.mkdir(parents=True, exist_ok=True)
    build = 'requires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    files = {
        "pyproject.toml": f"[build-system]\n{build}",
        "backend.py": backend,
        "PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
    }
    path = folder / f"{name}-{version}.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for member, text in files.items():
            info = tarfile.TarInfo(f"{name}-{version}/{member}")
            info.size = len(text.encode())
            archive.addfile(info, io.BytesIO(text.encode()))
    return path
