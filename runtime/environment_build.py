"""Builds one environment: a virtual environment over the node's own packages, filled by pip.

1. `create` makes it without packages; behind its own site folder lie those of the agent, so that
   what is installed there is found, and what is not comes from pip.
2. `install` runs pip, with constraints that keep what a worker's own process imports.
3. `commit` puts it on the disk and says last that it is complete.

It is built where it stays, since its programs name the place in their first line.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import time
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path

import orjson

from stoker.placement.errors import StartFailed, StorageFull
from stoker.placement.requirements import without_credentials
from stoker.runtime.durable import replace_file, sync_file_system, sync_folder
from stoker.runtime.environment_entry import environment_of, python_of, site_folder_of
from stoker.runtime.worker_start import zygote_environment
from stoker.runtime.zygote_client import kill_session

COMPLETE_NAME = "complete"
BUILD_SECONDS_MAXIMUM = 540.0
"""Below the time that an instance may take to start."""
FREE_BYTES_MINIMUM = 1 << 30
OUTPUT_BYTES_MAXIMUM = 16 << 20
LINES_MAXIMUM = 40
LINE_CHARACTERS_MAXIMUM = 200
LINES_IN_CAUSE_MAXIMUM = 12
_LOOK_SECONDS = 0.5
_TAIL_BYTES = 64 << 10

# What an operator tells pip; nothing else of the agent's environment reaches it.
_PIP_SETTINGS = (
    *("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX", "PIP_FIND_LINKS"),
    *("PIP_TRUSTED_HOST", "PIP_CERT", "PIP_CLIENT_CERT", "PIP_PROXY"),
    *("PIP_TIMEOUT", "PIP_DEFAULT_TIMEOUT", "PIP_RETRIES", "PIP_CACHE_DIR", "PIP_CONFIG_FILE"),
    *("PIP_ONLY_BINARY", "PIP_NO_BINARY", "PIP_PREFER_BINARY", "PIP_REQUIRE_HASHES"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"),
)
_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_ERROR = re.compile(r"\s*(ERROR|error): ")


def create(
    folder: Path, requirements: Sequence[str], pins: Sequence[str], site_folders: Sequence[str]
) -> None:
    """An environment without packages of its own in the place of what is in `folder`; OSError."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, mode=0o700)
    if shutil.disk_usage(folder).free < FREE_BYTES_MINIMUM:
        raise _full(folder)
    venv.EnvBuilder(symlinks=True).create(folder)
    lines = [f"import site; site.addsitedir({path!a})\n" for path in site_folders]
    (site_folder_of(folder) / "_stoker_base.pth").write_text("".join(lines))
    (folder / "requirements.txt").write_text("".join(f"{line}\n" for line in requirements))
    (folder / "constraints.txt").write_text("".join(f"{pin}\n" for pin in pins))
    (folder / "tmp").mkdir(mode=0o700)


async def install(folder: Path, environment: Mapping[str, str]) -> None:
    """Runs pip; StartFailed with its last lines when it fails or takes too much, StorageFull."""
    output = folder / "tmp" / "output"
    with output.open("wb") as written:
        process = await asyncio.create_subprocess_exec(
            *(str(python_of(folder)), "-P", "-m", "stoker.runtime.environment_pip"),
            *(str(os.getpid()), "install", "--no-input", "--progress-bar", "off"),
            *("--no-warn-conflicts", "--no-warn-script-location", "--disable-pip-version-check"),
            *("--requirement", str(folder / "requirements.txt")),
            *("--constraint", str(folder / "constraints.txt")),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=written,
            stderr=asyncio.subprocess.STDOUT,
            env=_pip_environment(folder, environment),
            cwd=folder / "tmp",
            start_new_session=True,
        )
        try:
            await _watch(process, output)
        finally:
            kill_session(process.pid)
            await process.wait()
    if process.returncode != 0:
        raise _failed(process.returncode, last_lines(output))


def commit(folder: Path) -> int:
    """Returns when the environment is complete on the disk, how many bytes it takes; OSError."""
    shutil.rmtree(folder / "tmp", ignore_errors=True)
    files = (path.lstat() for path in folder.rglob("*"))
    byte_count = sum(status.st_blocks for status in files) * 512
    sync_file_system(folder)
    replace_file(folder / COMPLETE_NAME, orjson.dumps({"bytes": byte_count}))
    sync_folder(folder)
    sync_folder(folder.parent)
    return byte_count


def _pip_environment(folder: Path, environment: Mapping[str, str]) -> dict[str, str]:
    home = environment.get("HOME", "/nonexistent")
    settings = {name: environment[name] for name in _PIP_SETTINGS if name in environment}
    found = {
        "PIP_NO_CACHE_DIR": "1",
        # The operator's own pip.conf; whatever else a build writes at home goes with the build.
        "XDG_CONFIG_HOME": environment.get("XDG_CONFIG_HOME", f"{home}/.config"),
        **zygote_environment(environment_of(folder, environment)),
        **settings,
        "HOME": str(folder / "tmp"),
        "TMPDIR": str(folder / "tmp"),
        "PYTHONNOUSERSITE": "1",
    }
    if "PIP_CACHE_DIR" in settings:
        del found["PIP_NO_CACHE_DIR"]
    return found


async def _watch(process: asyncio.subprocess.Process, output: Path) -> None:
    """Returns at the end of the process; raises when it takes too long, or too much of the disk."""
    deadline = time.monotonic() + BUILD_SECONDS_MAXIMUM
    ended = asyncio.ensure_future(process.wait())
    try:
        while not ended.done():
            # No one tells when a disk fills up, so it is looked at.
            await asyncio.wait({ended}, timeout=_LOOK_SECONDS)
            if shutil.disk_usage(output.parent).free < FREE_BYTES_MINIMUM:
                raise _full(output.parent)
            if time.monotonic() > deadline or output.stat().st_size > OUTPUT_BYTES_MAXIMUM:
                raise StartFailed(
                    f"Expected pip to install the packages of requirements.txt within "
                    f"{BUILD_SECONDS_MAXIMUM:g} s and {OUTPUT_BYTES_MAXIMUM} bytes of output, "
                    "found that it takes more.",
                    "Ask for fewer packages, or for those that need no compiling.",
                    output=last_lines(output),
                )
    finally:
        ended.cancel()


def last_lines(output: Path) -> list[str]:
    """The last lines of a file, short, without colours and passwords."""
    with contextlib.suppress(OSError), output.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
        text = _COLOUR.sub("", file.read().decode("utf-8", "replace"))
        lines = [without_credentials(line.rstrip()) for line in text.splitlines() if line.strip()]
        return [line[:LINE_CHARACTERS_MAXIMUM] for line in lines[-LINES_MAXIMUM:]]
    return []


def _failed(code: int | None, lines: list[str]) -> StartFailed:
    first = next((n for n, line in enumerate(lines) if _ERROR.match(line)), 0)
    said = [line.strip() for line in lines[first:][-LINES_IN_CAUSE_MAXIMUM:]]
    return StartFailed(
        f"Expected pip to install the packages of requirements.txt, found exit code {code} "
        f"and: {' | '.join(said) or 'nothing'}",
        "Correct requirements.txt and deploy again. Packages that Stoker's workers use keep "
        "their versions; the function's log has more of what pip said.",
        output=lines,
    )


def _full(folder: Path) -> StorageFull:
    return StorageFull(
        f"Expected {FREE_BYTES_MINIMUM} bytes to stay free at {folder} while an "
        f"environment is built, found {shutil.disk_usage(folder).free}.",
        "Free disk space on the node.",
    )
