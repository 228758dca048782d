"""A real gateway process on loopback, and fakes of its neighbours: placement, agent, instances.

The fakes are real sockets, served by one event loop in a thread of the test process.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from aiohttp import web as server

from harness import web
from harness.stack import free_port, wait_until
from stoker.placement.call_signature import call_signature
from stoker.placement.instance_token import instance_token
from stoker.placement.load_answer import LoadAnswer
from stoker.placement.records import (
    Assignment,
    DemandReport,
    EvictRequest,
    FunctionRecord,
    InstanceRecord,
    InstanceState,
    LeaderRecord,
    NodeRecord,
    PlaceAnswer,
    PlaceRequest,
    Scaling,
    decode,
    encode,
)
from stoker.placement.stores import open_store
from stoker.placement.why import WhyRequest

ROOT = Path(__file__).resolve().parents[2]
NODE = "node-1"
TOKEN_HEADER = "X-Stoker-Token"
_T = TypeVar("_T")
_numbers = itertools.count(1)
Handler = Callable[[server.Request], Awaitable[server.StreamResponse]]


class Loop:
    """An event loop in a thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.closers: list[Callable[[], Coroutine[Any, Any, None]]] = []

    def run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(20)

    def close(self) -> None:
        for closer in self.closers:
            self.run(closer())
        self.run(_cancel_others())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(5)
        self.loop.close()


async def _cancel_others() -> None:
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


@dataclass
class Instance:
    """An instance that lives in this process: what it was asked, and whether it was cancelled."""

    address: str
    requests: list[server.Request] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    cancelled: threading.Event = field(default_factory=threading.Event)
    in_flight: int = 0
    in_flight_maximum: int = 0


@dataclass
class Place:
    """The fake leader: `answer` decides; `together_maximum` is how many questions met."""

    address: str = ""
    answer: Callable[[PlaceRequest], Awaitable[PlaceAnswer | server.Response]] | None = None
    asked: list[PlaceRequest] = field(default_factory=list)
    reports: list[DemandReport] = field(default_factory=list)
    together: int = 0
    together_maximum: int = 0
    resolve: Callable[[str], server.Response] | None = None
    evict: Callable[[EvictRequest], server.Response] | None = None
    why: Callable[[str], server.Response] | None = None
    loaded_bytes: int = 0
    load_step_bytes: int = 0
    log_lines: list[bytes] = field(default_factory=list)
    log_queries: list[dict[str, str]] = field(default_factory=list)


@dataclass
class Bench:
    """A gateway at work. `store` is the test's own session of the store it reads."""

    state: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    loop: Loop = field(default_factory=Loop)
    place: Place = field(default_factory=Place)
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None
    descriptors: tuple[int, ...] = ()

    def start(self) -> Bench:
        self.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.store = open_store(f"sqlite://{self.state / 'store.sqlite'}", "token")
        self.place.address = self.loop.run(self._serve_neighbours())
        self.store.put("/placement/leader", encode(LeaderRecord("leader", self.place.address, 1)))
        node = NodeRecord(NODE, self.place.address, 2, 0, 0, 8, zygote_ready=True)
        self.store.put(node.path, encode(node))
        self.process = self.spawn()
        wait_until(self._answers, "the gateway answers")
        return self

    def spawn(self, **environment: str) -> subprocess.Popen[bytes]:
        variables = {
            **os.environ,
            "PYTHONPATH": str(ROOT / ".src"),
            "STOKER_STATE": str(self.state),
            "STOKER_STORE": f"sqlite://{self.state / 'store.sqlite'}",
            "STOKER_GATEWAY_BIND": f"127.0.0.1:{self.port}",
            **self.environment,
            **environment,
        }
        with (self.state / "gateway.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "stoker.gateway.main"],
                env=variables,
                stdout=log,
                stderr=log,
                pass_fds=self.descriptors,
                start_new_session=True,
            )

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                raise
        self.store.close()
        self.loop.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def password(self) -> str:
        return (self.state / "auth" / "password").read_text()

    @property
    def token(self) -> str:
        return (self.state / "auth" / "cluster-token").read_text()

    @property
    def log(self) -> str:
        return (self.state / "gateway.log").read_text()

    def call(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> web.Answer:
        return web.call(method, self.url + path, body, headers)

    def system(self, method: str, path: str, body: Any = None) -> web.Answer:
        json_wanted = {"Accept": "application/json"}
        return self.call(method, path, body, web.basic(self.password) | json_wanted)

    def function(self, **fields: Any) -> FunctionRecord:
        """A deployed function with a name of its own, and the gateway knows it."""
        fields = {"name": f"f{next(_numbers)}", "namespace": "openfaas-fn", "image": "x"} | fields
        record = FunctionRecord(**{"scaling": Scaling(concurrency=16), **fields})
        self.store.put(record.path, encode(record))
        path = f"/system/function/{record.name}?namespace={record.namespace}"
        wait_until(lambda: self.system("GET", path).status == 200, "the function is known")
        return record

    def assignment(self, function: FunctionRecord, address: str) -> Assignment:
        identity = f"i{next(_numbers)}"
        return Assignment(identity, function.key, function.generation, NODE, address, 1, 0.0)

    def instance(
        self, function: FunctionRecord, address: str, state: InstanceState = "serving"
    ) -> Assignment:
        """An assigned instance in `state`, and the gateway knows it."""
        made = self.assignment(function, address)
        self.store.put(made.path, encode(made))
        record = InstanceRecord(
            made.instance_id, made.function, made.generation, NODE, address, state, 1, time.time()
        )
        self.store.put(record.path, encode(record))
        wait_until(
            lambda: any(
                row["instance_id"] == made.instance_id and row["state"] == state
                for row in self.system("GET", "/system/instances").json()
            ),
            "the instance is known",
        )
        return made

    def worker(self, handler: Handler) -> Instance:
        """An instance that answers by `handler`; without its own token it answers 401."""
        token = self.token

        async def route(request: server.Request) -> server.StreamResponse:
            own = instance_token(token, request.headers.get("X-Stoker-Instance", ""))
            if request.headers.get(TOKEN_HEADER) != own:
                return server.Response(status=401)
            made.requests.append(request)
            made.bodies.append(await request.read())
            made.in_flight += 1
            made.in_flight_maximum = max(made.in_flight_maximum, made.in_flight)
            try:
                return await handler(request)
            except asyncio.CancelledError:
                made.cancelled.set()
                raise
            finally:
                made.in_flight -= 1

        made = Instance(self.loop.run(_listen(self.loop, route)))
        return made

    def raw_worker(
        self, script: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
    ) -> str:
        """An instance that is a script over bare sockets; its address."""

        async def serve() -> str:
            listening = await asyncio.start_server(script, "127.0.0.1", 0)

            async def close() -> None:
                listening.close()

            self.loop.closers.append(close)
            return f"127.0.0.1:{listening.sockets[0].getsockname()[1]}"

        return self.loop.run(serve())

    async def _serve_neighbours(self) -> str:
        place = self.place

        async def route(request: server.Request) -> server.StreamResponse:
            body = await request.read()
            signature = call_signature(self.token, request.method, request.raw_path, body)
            if request.headers.get(TOKEN_HEADER) != signature:
                return server.Response(status=401)
            if request.path == "/report":
                place.reports.append(decode(DemandReport, body))
                return server.Response(status=204)
            if request.path == "/resolve":
                assert place.resolve is not None
                return place.resolve((await request.json())["uri"])
            if request.path == "/evict":
                assert place.evict is not None
                return place.evict(decode(EvictRequest, body))
            if request.path == "/why":
                assert place.why is not None
                return place.why(decode(WhyRequest, body).name)
            if request.path.startswith("/loads/"):
                place.loaded_bytes += place.load_step_bytes
                return server.Response(body=encode(LoadAnswer(place.loaded_bytes)))
            if request.path == "/logs":
                place.log_queries.append(dict(request.query))
                return server.Response(body=b"".join(place.log_lines))
            asked = decode(PlaceRequest, body)
            place.asked.append(asked)
            place.together += 1
            place.together_maximum = max(place.together_maximum, place.together)
            try:
                assert place.answer is not None
                answer = await place.answer(asked)
            finally:
                place.together -= 1
            if isinstance(answer, server.Response):
                return answer
            return server.Response(body=encode(answer))

        return await _listen(self.loop, route)

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log
        with contextlib.suppress(OSError):
            healthy: bool = self.call("GET", "/healthz").status == 200
            return healthy
        return False


async def _listen(loop: Loop, route: Handler) -> str:
    app = server.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{path:.*}", route)
    runner = server.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = server.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    loop.closers.append(runner.cleanup)
    host, port = runner.addresses[0][:2]
    return f"{host}:{port}"


async def stream(
    request: server.Request, chunks: AsyncIterator[bytes], content_type: str
) -> server.StreamResponse:
    """Send `chunks` as they come, as an instance does."""
    response = server.StreamResponse(headers={"Content-Type": content_type})
    await response.prepare(request)
    async for chunk in chunks:
        await response.write(chunk)
    await response.write_eof()
    return response


def reset(writer: asyncio.StreamWriter) -> None:
    """Close as the kernel does for a process that was killed: by RST."""
    bare = writer.get_extra_info("socket")
    bare.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def closed_address() -> str:
    """Where nothing listens."""
    return f"127.0.0.1:{free_port()}"
