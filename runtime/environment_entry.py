"""Where things lie in an environment, and how a process that has begun elsewhere gets into it."""

from __future__ import annotations

import importlib
import os
import site
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path


def python_of(folder: Path) -> Path:
    return folder / "bin" / "python"


def site_folder_of(folder: Path) -> Path:
    """Where the environment's own packages lie."""
    base = {"base": str(folder), "platbase": str(folder)}
    return Path(sysconfig.get_path("purelib", "venv", base))


def environment_of(folder: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """The environment variables with which its programs find each other."""
    path = f"{folder / 'bin'}:{environment.get('PATH', os.defpath)}"
    return {**environment, "PATH": path, "VIRTUAL_ENV": str(folder)}


def enter(folder: Path) -> None:
    """From now on this process imports what the environment has, before what the node has.

    What it has imported already must be of the same version in both; see `Installed.pins`.
    """
    before = list(sys.path)
    site.addsitedir(str(site_folder_of(folder)))
    added = [path for path in sys.path if path not in before]
    node_folders = site.getsitepackages()
    first = next((n for n, path in enumerate(before) if path in node_folders), len(before))
    sys.path[:] = [*before[:first], *added, *before[first:]]
    importlib.invalidate_caches()
    sys.prefix = sys.exec_prefix = str(folder)
    sys.executable = str(python_of(folder))
    os.environ.update(environment_of(folder, os.environ))
