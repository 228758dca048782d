"""A client that leaves gives back what its request held of a real engine, over real HTTP."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import uvicorn

from harness import tiny_model
from stoker.runtime.engine.tokenizer import TextCodec
from stoker.runtime.engine.transformers_engine import TransformersEngine
from stoker.runtime.handlers.model import GenerationHandler
from stoker.runtime.worker_http import Ready, WorkerApp

TOKEN = "cluster-token"
CONTEXT_TOKENS = 4096
FREED_SECONDS_MAXIMUM = 1.0
ENDLESS = {"max_tokens": 3900, "temperature": 1.0, "seed": 5}


@dataclass
class Served:
    app: WorkerApp
    engine: TransformersEngine
    port: int

    async def send(self, path: str, body: dict[str, Any]) -> Client:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        payload = json.dumps({**ENDLESS, **body}).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nX-Stoker-Token: {TOKEN}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n"
        writer.write(head.encode() + payload)
        await writer.drain()
        return Client(reader, writer)

    async def chat(self, *, stream: bool) -> Client:
        messages = [{"role": "user", "content": "a prompt of some length " * 8}]
        return await self.send("/v1/chat/completions", {"messages": messages, "stream": stream})

    @property
    def requests_inside(self) -> int:
        return self.app._admission.inside

    def assert_nothing_is_left(self) -> None:
        processor = self.engine._manager.batch_processor
        assert processor.scheduler.active_requests == {}
        assert processor.scheduler.waiting_requests == {}
        assert self.engine._manager.output_router.result_handlers == {}


@dataclass
class Client:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def event(self) -> bytes:
        return await asyncio.wait_for(self.reader.readuntil(b"data: "), 10)

    def leave(self) -> None:
        self.writer.transport.abort()


async def until(holds: Callable[[], bool], what: str, seconds: float = 10.0) -> float:
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < seconds, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.005)
    return time.monotonic() - began


async def freed(served: Served) -> None:
    await until(
        lambda: served.engine.cached_tokens == 0, "the cache is free", FREED_SECONDS_MAXIMUM
    )
    await until(lambda: not served.requests_inside, "the slots are free", FREED_SECONDS_MAXIMUM)
    served.assert_nothing_is_left()


@asynccontextmanager
async def serving(concurrency: int) -> AsyncIterator[Served]:
    engine = TransformersEngine(
        tiny_model.llama(context_tokens=CONTEXT_TOKENS),
        end_tokens=[],
        context_tokens=CONTEXT_TOKENS,
        concurrency=concurrency,
    )
    engine.start()
    codec = TextCodec(tiny_model.byte_tokenizer(), tiny_model.CHAT_TEMPLATE, {})
    ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
    ready.set_result(Ready(GenerationHandler(engine, codec, "chat")))
    app = WorkerApp(TOKEN, "i-1", ready, concurrency, time.monotonic())
    server = uvicorn.Server(
        uvicorn.Config(app, lifespan="off", log_config=None, timeout_graceful_shutdown=1)
    )
    with socket.create_server(("127.0.0.1", 0)) as listening:
        running = asyncio.ensure_future(server.serve(sockets=[listening]))
        try:
            yield Served(app, engine, listening.getsockname()[1])
        finally:
            server.should_exit = True
            await running
            engine.close()


def run(story: Callable[[Served], Coroutine[Any, Any, None]], concurrency: int = 2) -> None:
    async def main() -> None:
        async with serving(concurrency) as served:
            await story(served)

    asyncio.run(main())


@pytest.mark.parametrize("events", [1, 20])
def test_leaving_in_the_middle_of_a_stream_frees_the_cache_within_a_second(events: int) -> None:
    async def story(served: Served) -> None:
        client = await served.chat(stream=True)
        for _ in range(events):
            await client.event()
        assert served.engine.cached_tokens > 0
        client.leave()
        await freed(served)

    run(story)


def test_leaving_before_a_whole_answer_frees_the_cache_within_a_second() -> None:
    async def story(served: Served) -> None:
        client = await served.chat(stream=False)
        await until(lambda: served.engine.cached_tokens > 0, "the request runs")
        client.leave()
        await freed(served)

    run(story)


def test_leaving_while_waiting_for_a_slot_takes_nothing_from_those_who_run() -> None:
    async def story(served: Served) -> None:
        runs = await served.chat(stream=True)
        await runs.event()
        waits = await served.chat(stream=True)
        await until(lambda: served.requests_inside == 2, "the second one waits")
        waits.leave()
        await until(lambda: served.requests_inside == 1, "it has left", FREED_SECONDS_MAXIMUM)
        await runs.event()
        runs.leave()
        await freed(served)

    run(story, concurrency=1)


def test_leaving_while_the_engine_has_no_room_takes_all_of_its_prompts_away() -> None:
    async def story(served: Served) -> None:
        scheduler = served.engine._manager.batch_processor.scheduler
        client = await served.send("/v1/completions", {"prompt": ["some text"] * 8})
        await until(lambda: len(scheduler.waiting_requests) == 6, "six of eight wait")
        client.leave()
        await freed(served)

    run(story, concurrency=2)


def test_what_is_cancelled_leaves_nothing_behind_in_the_engine() -> None:
    async def story(served: Served) -> None:
        for _ in range(5):
            client = await served.chat(stream=True)
            await client.event()
            client.leave()
        await freed(served)
        router = served.engine._manager.output_router
        assert not hasattr(router.output_queue, "queue")

    run(story)
