"""A real zygote and workers of it, over a real pool filled by the native loader."""

from __future__ import annotations

import functools
import http.client
import json
import os
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stoker.native import (
    CHUNK_BYTES,
    Load,
    Pool,
    Progress,
    ReadRequest,
    header_bytes,
    parse_header,
)
from stoker.placement.records import FunctionRecord
from stoker.runtime import sandbox
from stoker.runtime.secret_files import packed
from stoker.runtime.worker_start import (
    CheckpointStart,
    ParkStart,
    SandboxStart,
    WorkerStart,
    WorkerStatus,
    ZygoteEvent,
    decode_event,
    decode_status,
    encode_start,
    zygote_environment,
)

TOKEN = "instance-token-of-the-tests"


@dataclass
class Resident:
    """One checkpoint folder in the pool; `read` loads its bytes."""

    pool: Pool
    progress: Progress
    start: CheckpointStart
    load: Load
    requests: list[ReadRequest]

    def read(self) -> None:
        self.load.read(self.requests)
        self.progress.complete()


def resident(folder: Path, pool: Pool, scratch: Path) -> Resident:
    """The folder's one weight file with chunks allocated for it, none of them read yet."""
    (path,) = folder.glob("*.safetensors")
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        data = header_bytes(head, size)
        head += file.read(data - 8)
    tensors = [
        [name, dtype, list(shape), data + begin, end - begin]
        for name, dtype, shape, begin, end in parse_header(head, size)
    ]
    layout = scratch / f"{folder.name}.json"
    layout.write_text(json.dumps({"tensors": tensors, "byte_count": size}))
    count = -(-size // CHUNK_BYTES)
    sizes = [min(CHUNK_BYTES, size - i * CHUNK_BYTES) for i in range(count)]
    chunks = pool.allocate(count)
    progress = Progress(count, size)
    load = Load(pool, chunks, sizes, [None] * count, progress)
    requests = [ReadRequest(path, i * CHUNK_BYTES, i) for i in range(count)]
    start = CheckpointStart(str(folder), str(layout), tuple(chunks), size, folder.name)
    return Resident(pool, progress, start, load, requests)


@functools.cache
def sandbox_levels() -> tuple[str, ...]:
    """Every level that this machine has: workers of tests are held as those of a node."""
    return sandbox.in_force(sandbox.probe())


class ZygoteProcess:
    """`python -m stoker.runtime.zygote` and its control socket."""

    def __init__(self) -> None:
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.settimeout(60.0)
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "stoker.runtime.zygote", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=zygote_environment(os.environ | {"AWS_SECRET_ACCESS_KEY": "never-passed-on"}),
        )
        theirs.close()
        assert self.event().event == "ready"

    def event(self) -> ZygoteEvent:
        return decode_event(self.control.recv(65536))

    def send(self, message: bytes, descriptors: list[int]) -> None:
        socket.send_fds(self.control, [message], descriptors)

    def close(self) -> None:
        self.control.close()
        self.process.wait(10)


def start_of(
    function: FunctionRecord,
    work_dir: Path,
    *,
    checkpoint: Resident | None = None,
    adapter: Resident | None = None,
    code_dir: Path | None = None,
    threads: int = 1,
    instance_id: str = "i-1",
    hidden: tuple[str, ...] = (),
    groups: tuple[str, ...] = (),
    memory_bytes: int | None = None,
) -> WorkerStart:
    return WorkerStart(
        instance_id,
        function,
        TOKEN,
        threads,
        str(work_dir),
        time.monotonic(),
        None if code_dir is None else str(code_dir),
        None if checkpoint is None else checkpoint.start,
        adapter=None if adapter is None else adapter.start,
        sandbox=SandboxStart(sandbox_levels(), hidden, groups, memory_bytes),
    )


class ParkedProcess:
    """One worker ahead of its start: `said` is how it went, `log` what it wrote."""

    def __init__(
        self, zygote: ZygoteProcess, function: FunctionRecord, work_dir: Path, **keywords: Any
    ) -> None:
        self.zygote = zygote
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.settimeout(60.0)
        self.log_read, log_write = os.pipe()
        os.set_blocking(self.log_read, False)
        start = replace(start_of(function, work_dir, **keywords), token="", instance_id="parked-1")
        zygote.send(encode_start(ParkStart(start)), [theirs.fileno(), log_write])
        theirs.close()
        os.close(log_write)
        event = zygote.event()
        if event.event != "forked":
            self.control.close()
            os.close(self.log_read)
            raise AssertionError(event)
        self.pid = event.pid
        message = self.control.recv(65536)
        self.said = decode_status(message) if message else None

    def log(self) -> str:
        return _read_all(self.log_read)

    def end(self) -> None:
        """Nothing is to come; the zygote reports its end."""
        self.control.close()
        event = self.zygote.event()
        assert (event.event, event.pid) == ("exited", self.pid)
        os.close(self.log_read)


def _read_all(descriptor: int) -> str:
    """What a pipe holds by now."""
    text = b""
    while True:
        try:
            part = os.read(descriptor, 65536)
        except BlockingIOError:
            return text.decode()
        if not part:
            return text.decode()
        text += part


class WorkerProcess:
    """One worker: `call` sends a request over real HTTP, `status` is its first status line.

    It is forked, or is the one that was `parked` for it.
    """

    def __init__(
        self,
        zygote: ZygoteProcess,
        function: FunctionRecord,
        work_dir: Path,
        *,
        parked: ParkedProcess | None = None,
        checkpoint: Resident | None = None,
        adapter: Resident | None = None,
        secrets: Mapping[str, bytes] | None = None,
        **keywords: Any,
    ) -> None:
        self.zygote = zygote
        listening = socket.create_server(("127.0.0.1", 0))
        self.port = listening.getsockname()[1]
        self._log_read, log_write = os.pipe()
        self._status_read, status_write = os.pipe()
        os.set_blocking(self._log_read, False)
        start = start_of(function, work_dir, checkpoint=checkpoint, adapter=adapter, **keywords)
        self.began = start.started_at
        descriptors = [listening.fileno(), log_write, status_write]
        if secrets:
            descriptors.append(packed(secrets))
        if checkpoint is not None:
            descriptors += [checkpoint.pool.fd, checkpoint.progress.fd]
        if adapter is not None:
            descriptors.append(adapter.progress.fd)
        if parked is None:
            zygote.send(encode_start(start), descriptors)
        else:
            socket.send_fds(parked.control, [encode_start(start)], descriptors)
            assert parked.control.recv(16) == b"1"
        listening.close()
        os.close(log_write)
        os.close(status_write)
        if secrets:
            os.close(descriptors[3])
        if parked is None:
            event = zygote.event()
            assert event.event == "forked", event
            self.pid = event.pid
        else:
            parked.control.close()
            self.pid = parked.pid

    def status(self, timeout_seconds: float = 30.0) -> WorkerStatus:
        """How the start went; that a request came first is passed over."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._status_read, selectors.EVENT_READ)
            while True:
                assert selector.select(timeout_seconds), f"no status; log: {self.log()}"
                for line in os.read(self._status_read, 65536).splitlines():
                    if (said := decode_status(line)).event != "called":
                        return said

    def log(self) -> str:
        return _read_all(self._log_read)

    def open(
        self,
        path: str = "/",
        body: bytes | Mapping[str, Any] | None = b"",
        *,
        method: str = "POST",
        headers: Mapping[str, str] | None = None,
    ) -> http.client.HTTPResponse:
        """The response once its head has come; its connection closes with it."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        sent = {
            "X-Stoker-Token": TOKEN,
            "X-Stoker-Dispatched": str(time.time_ns()),
            "Connection": "close",
        }
        if isinstance(body, Mapping):
            body = json.dumps(body).encode()
            sent["Content-Type"] = "application/json"
        connection.request(method, path, body, sent | dict(headers or {}))
        return connection.getresponse()

    def call(self, *arguments: Any, **keywords: Any) -> tuple[int, bytes, dict[str, str]]:
        with self.open(*arguments, **keywords) as response:
            return (
                response.status,
                response.read(),
                {k.lower(): v for k, v in response.getheaders()},
            )

    def stop(self, number: int = 15) -> int:
        """Ends it; the exit status that the zygote reports."""
        os.kill(self.pid, number)
        event = self.zygote.event()
        assert (event.event, event.pid) == ("exited", self.pid)
        os.close(self._log_read)
        os.close(self._status_read)
        return event.status


@contextmanager
def worker(*arguments: Any, **keywords: Any) -> Iterator[WorkerProcess]:
    made = WorkerProcess(*arguments, **keywords)
    try:
        yield made
    finally:
        made.stop(9)
