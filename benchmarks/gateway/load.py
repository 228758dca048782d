"""The load, in a process of its own: keep-alive connections, and as little work as can be.

    python load.py '{"kind": "open", "port": 8080, "path": "/", ...}'

open    requests at random times at a given rate, whether the earlier ones are answered or not; a
        request that finds no free connection waits for one, and its time counts from its arrival
closed  each connection sends its next request as soon as it has the answer: the most that goes
first   one request after the other: from its start to the first event of its answer
hold    streams that stay open; the line `held` is printed when all have had an event, and the
        result when standard input ends

The result is one line of JSON.
"""

from __future__ import annotations

import asyncio
import collections
import json
import random
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httptools
import uvloop

ANSWER_SECONDS_MAXIMUM = 20.0
WARM_REQUESTS = 50
OPENINGS_AT_ONCE = 100


@dataclass(frozen=True)
class Load:
    """Times in seconds; `rate` is in requests/s."""

    kind: str
    port: int
    path: str
    body: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    connections: int = 32
    seconds: float = 5.0
    rate: float = 500.0
    count: int = 200
    seed: int = 7

    def request(self) -> bytes:
        body = self.body.encode()
        head = f"POST {self.path} HTTP/1.1\r\nhost: 127.0.0.1:{self.port}\r\n"
        typed = {"content-type": "application/json", "accept": "*/*", **self.headers}
        lines = "".join(f"{name}: {value}\r\n" for name, value in typed.items())
        return f"{head}{lines}content-length: {len(body)}\r\n\r\n".encode() + body


class Client(asyncio.Protocol):
    """One connection. `on_first` hears of the first byte of a body, `on_end` of its end."""

    def __init__(self) -> None:
        self.status = 0
        self.is_open = True
        self.on_first: Callable[[], None] | None = None
        self.on_end: Callable[[], None] | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._transport: Any = None

    def send(self, request: bytes) -> None:
        self._transport.write(request)

    def close(self) -> None:
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (asyncio names it)
        self.is_open = False

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()

    def on_body(self, _body: bytes) -> None:
        if self.on_first is not None:
            on_first, self.on_first = self.on_first, None
            on_first()

    def on_message_complete(self) -> None:
        if self.on_end is not None:
            self.on_end()


async def connect(load: Load) -> Client:
    _, client = await asyncio.get_running_loop().create_connection(Client, "127.0.0.1", load.port)
    return client


async def ask(client: Client, request: bytes) -> float:
    """Seconds from the request to the first bytes of the body; waits for the end."""
    ended = asyncio.get_running_loop().create_future()
    began, first = time.perf_counter(), 0.0

    def note() -> None:
        nonlocal first
        first = time.perf_counter() - began

    client.on_first = note
    client.on_end = lambda: ended.set_result(None)
    client.send(request)
    async with asyncio.timeout(ANSWER_SECONDS_MAXIMUM):
        await ended
    if client.status != 200:
        sys.exit(f"A request was answered with {client.status}.")
    return first


async def open_loop(load: Load) -> dict[str, Any]:
    clients = [await connect(load) for _ in range(load.connections)]
    request, free = load.request(), list(clients)
    for _ in range(WARM_REQUESTS):
        await ask(clients[0], request)
    waiting: collections.deque[float] = collections.deque()
    seconds: list[float] = []
    failed = 0

    def launch(client: Client, arrived: float) -> None:
        def ended() -> None:
            nonlocal failed
            seconds.append(time.perf_counter() - arrived)
            failed += client.status != 200
            if waiting:
                launch(client, waiting.popleft())
            else:
                free.append(client)

        client.on_end = ended
        client.send(request)

    arrivals, late = random.Random(load.seed), list[float]()
    began = time.perf_counter()
    at = began
    while (at := at + arrivals.expovariate(load.rate)) < began + load.seconds:
        delay = at - time.perf_counter()
        if delay > 0:
            await asyncio.sleep(delay)
        now = time.perf_counter()
        late.append(now - at)
        if free:
            launch(free.pop(), now)
        else:
            waiting.append(now)
    deadline = time.perf_counter() + ANSWER_SECONDS_MAXIMUM
    while len(free) < load.connections and time.perf_counter() < deadline:
        await asyncio.sleep(0.01)
    return {
        "requests": len(late),
        "answered": len(seconds),
        "failed": failed + len(late) - len(seconds),
        "p50_ms": percentile(seconds, 0.5) * 1000,
        "p99_ms": percentile(seconds, 0.99) * 1000,
        "generator_late_p99_ms": percentile(late, 0.99) * 1000,
    }


async def closed_loop(load: Load) -> dict[str, Any]:
    clients = [await connect(load) for _ in range(load.connections)]
    request, ended, failed = load.request(), 0, 0
    await ask(clients[0], request)

    def next_one(client: Client) -> None:
        nonlocal ended, failed
        ended += 1
        failed += client.status != 200
        client.send(request)

    for client in clients:
        client.on_end = lambda client=client: next_one(client)
        client.send(request)
    await asyncio.sleep(load.seconds / 4)
    counted, began = ended, time.perf_counter()
    print("begun", flush=True)
    await asyncio.sleep(load.seconds)
    print("ended", flush=True)
    rate = (ended - counted) / (time.perf_counter() - began)
    return {"requests_per_second": rate, "requests": ended - counted, "failed": failed}


async def first_events(load: Load) -> dict[str, Any]:
    client, request = await connect(load), load.request()
    for _ in range(5):
        await ask(client, request)
    seconds = [await ask(client, request) for _ in range(load.count)]
    return {"p50_ms": percentile(seconds, 0.5) * 1000, "p99_ms": percentile(seconds, 0.99) * 1000}


async def hold(load: Load) -> dict[str, Any]:
    loop, request = asyncio.get_running_loop(), load.request()
    clients: list[Client] = []
    for begin in range(0, load.count, OPENINGS_AT_ONCE):
        batch = [await connect(load) for _ in range(min(OPENINGS_AT_ONCE, load.count - begin))]
        firsts = [loop.create_future() for _ in batch]
        for client, first in zip(batch, firsts, strict=True):
            client.on_first = lambda first=first: first.set_result(None)
            client.send(request)
        async with asyncio.timeout(ANSWER_SECONDS_MAXIMUM):
            await asyncio.gather(*firsts)
        clients += batch
    print("held", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    still_open = sum(client.is_open for client in clients)
    for client in clients:
        client.close()
    return {"streams": len(clients), "still_open": still_open}


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


KINDS = {"open": open_loop, "closed": closed_loop, "first": first_events, "hold": hold}


def main() -> None:
    load = Load(**json.loads(sys.argv[1]))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    print(json.dumps(uvloop.run(KINDS[load.kind](load))), flush=True)


if __name__ == "__main__":
    main()
