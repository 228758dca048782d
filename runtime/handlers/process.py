"""Classic functions: one process per request, as OpenFaaS' classic watchdog runs `fprocess`.

The body is on its standard input, the request in its environment (Http_Method, Http_Path,
Http_Query, Http_Host, Http_Content_Length, Http_<Header_Name>); what it writes to standard output
is the answer, what it writes to standard error goes to the function's log. An exit code other
than 0 is a 500. After `exec_timeout` (30 s; 0: never) the answer is 408. Its process group ends
with the request, however that ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from stoker.placement.errors import FunctionError, StartFailed
from stoker.runtime.handlers.deadline import exec_seconds, limit_seconds
from stoker.runtime.handlers.http import Headers, Request, Response

ANSWER_BYTES_MAXIMUM = 64 << 20
EXEC_SECONDS_DEFAULT = 30.0
_READ_BYTES = 256 * 1024


class ProcessHandler:
    """Runs `arguments` in `folder` for each request; `environment` is what every process gets.

    StartFailed if there is no such program or exec_timeout is no duration.
    """

    def __init__(
        self, arguments: Sequence[str], folder: Path, environment: Mapping[str, str]
    ) -> None:
        self._arguments = tuple(arguments)
        self._folder = folder
        self._environment = dict(environment)
        self._exec_seconds = exec_seconds(environment, EXEC_SECONDS_DEFAULT)
        program = self._arguments[0] if self._arguments else ""
        search = f"{folder}" if "/" in program else environment.get("PATH", os.defpath)
        if shutil.which(folder / program if "/" in program else program, path=search) is None:
            raise StartFailed(
                f"Expected the program {program!r:.200} of fprocess in {search}, found none.",
                "Name an executable of the function's folder as ./program, or one of the PATH.",
            )

    async def __call__(self, request: Request) -> Response:
        began = time.monotonic()
        limit = limit_seconds(request, self._exec_seconds)
        sys.stderr.write("Forking fprocess.\n")
        forked = self._fork(request)
        try:
            async with asyncio.timeout(limit):
                output = await forked.output()
                code = await forked.exit_code()
        except TimeoutError:
            sys.stderr.write(f"Killed fprocess after {limit:g} s (exec_timeout).\n")
            text = f"Expected {self._arguments[0]} to end within {limit:g} s."
            return Response(408, (("content-type", "text/plain; charset=utf-8"),), text.encode())
        finally:
            forked.close()
        if code != 0:
            how = f"exit code {code}" if code > 0 else f"signal {-code}"
            sys.stderr.write(f"fprocess ended with {how}.\n")
            raise FunctionError(
                f"Expected {self._arguments[0]} to end with exit code 0, found {how}.",
                "The function's log has what it wrote to standard error.",
            )
        seconds = time.monotonic() - began
        sys.stderr.write(f"Wrote {len(output)} Bytes - Duration: {seconds:.6f}s\n")
        return Response(200, self._headers(request, output), output)

    def _fork(self, request: Request) -> _Forked:
        environment = {k.encode(): v.encode() for k, v in self._environment.items()}
        environment |= {
            name.encode(): value.encode("latin-1")
            for name, value in request_environment(request).items()
        }
        try:
            return _Forked(self._arguments, self._folder, environment, request.body)
        except OSError as error:
            raise FunctionError(
                f"Expected to run {self._arguments[0]}, found: {error.strerror}.",
                "Check the program, and send shorter headers if they are long.",
            ) from error

    def _headers(self, request: Request, output: bytes) -> Headers:
        stated = self._environment.get("content_type") or request.header("content-type")
        return (("content-type", stated or _sniffed(output)),)


class _Forked:
    """One process in its own group; its end and its output are told by descriptors."""

    def __init__(
        self,
        arguments: Sequence[str],
        folder: Path,
        environment: Mapping[bytes, bytes],
        body: bytes,
    ) -> None:
        # A file rather than a pipe: nobody has to feed it, and it may stay unread.
        given = os.memfd_create("stoker-request", os.MFD_CLOEXEC)
        read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            with open(given, "wb", closefd=False) as file:
                file.write(body)
            os.lseek(given, 0, os.SEEK_SET)
            os.set_blocking(write_end, True)
            self._process = subprocess.Popen(
                arguments,
                stdin=given,
                stdout=write_end,
                cwd=folder,
                env=environment,
                process_group=0,
            )
        except BaseException:
            os.close(read_end)
            raise
        finally:
            os.close(given)
            os.close(write_end)
        self._read_end = read_end
        self._ended = os.pidfd_open(self._process.pid)
        self._is_open = True

    async def output(self) -> bytes:
        """All that the process wrote; FunctionError if it is more than the maximum."""
        parts: list[bytes] = []
        size = 0
        while True:
            try:
                part = os.read(self._read_end, _READ_BYTES)
            except BlockingIOError:
                await _readable(self._read_end)
                continue
            if not part:
                return b"".join(parts)
            size += len(part)
            if size > ANSWER_BYTES_MAXIMUM:
                raise FunctionError(
                    f"Expected an answer of at most {ANSWER_BYTES_MAXIMUM} bytes, found more.",
                    "Write less, or put the data into object storage.",
                )
            parts.append(part)

    async def exit_code(self) -> int:
        """The exit code, or minus the signal that ended the process."""
        await _readable(self._ended)
        self.close()
        return self._process.returncode

    def close(self) -> None:
        """Kills what is left of the group and reaps the process."""
        if not self._is_open:
            return
        self._is_open = False
        # Not yet reaped, so that the group's number is still its own.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._read_end)
        os.close(self._ended)


def request_environment(request: Request) -> dict[str, str]:
    """The request as the classic watchdog puts it into the environment."""
    found = {
        "Http_Method": request.method,
        "Http_Path": request.path,
        "Http_Query": request.query,
        "Http_Host": request.header("host"),
        "Http_Content_Length": str(len(request.body)),
        "Http_ContentLength": str(len(request.body)),
    }
    headers = {
        "Http_" + name.title().replace("-", "_"): value
        for name, value in reversed(request.public_headers)
    }
    return headers | {name: value for name, value in found.items() if value}


def _sniffed(output: bytes) -> str:
    try:
        output.decode()
    except UnicodeDecodeError:
        return "application/octet-stream"
    return "text/plain; charset=utf-8"


async def _readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(descriptor, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(descriptor)
