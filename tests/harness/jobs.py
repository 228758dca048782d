"""Asynchronous calls of a gateway under test, and where their callbacks arrive."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import web as server

from harness import web
from harness.gateway import Bench, Instance
from harness.stack import wait_until
from stoker.placement.records import FunctionRecord

PREFIX = "com.openfaas.retry."
QUICK = {f"{PREFIX}min_wait": "20ms", f"{PREFIX}max_wait": "50ms", f"{PREFIX}attempts": "2"}


async def echo(request: server.Request) -> server.Response:
    headers = {"X-Path": request.raw_path, "X-Own": "a", "Set-Cookie": "s=1"}
    return server.Response(body=await request.read(), headers=headers)


def deployed(
    bench: Bench, handler: Callable[[server.Request], Any], **fields: Any
) -> tuple[FunctionRecord, Instance]:
    function, worker = bench.function(**{"annotations": QUICK} | fields), bench.worker(handler)
    bench.instance(function, worker.address)
    return function, worker


def submit(
    bench: Bench, function: FunctionRecord, body: bytes = b"x", **headers: str
) -> web.Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return bench.call("POST", f"/async-function/{function.name}", body, named)


def status(bench: Bench, call_id: str) -> dict[str, Any]:
    answer = bench.system("GET", f"/system/async/{call_id}")
    assert answer.status == 200
    found: dict[str, Any] = answer.json()
    return found


def ended(bench: Bench, call_id: str, state: str) -> dict[str, Any]:
    wait_until(lambda: status(bench, call_id)["state"] == state, f"{call_id} is {state}")
    return status(bench, call_id)


class Receiver:
    """Where callbacks arrive; `answers` are its statuses, one for each, the last one for good."""

    def __init__(self, bench: Bench, *answers: int) -> None:
        self.headers: list[Mapping[str, str]] = []
        self.bodies: list[bytes] = []
        self._answers = list(answers or (200,))
        self._lock = threading.Lock()
        self.address = bench.raw_worker(self._answer)

    @property
    def url(self) -> str:
        return f"http://{self.address}/hook?a=b"

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        fields = {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in head[1:])}
        body = await reader.readexactly(int(fields["content-length"]))
        with self._lock:
            self.headers.append({"first": head[0], **fields})
            self.bodies.append(body)
            code = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        writer.write(f"HTTP/1.1 {code} X\r\nContent-Length: 0\r\nLocation: /\r\n\r\n".encode())
        writer.close()
