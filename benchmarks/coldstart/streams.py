"""Many streams at once, warm: through the gateway, and by continuous batching alone.

The second is `batching.py` in a process of its own, with the sizes, the threads and the
environment that a worker has.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import aiohttp
from cold_node import ColdNode
from figures import percentile
from http_client import Failed
from starts import STREAM_PAIRS, STREAM_TOKENS, STREAMS, stream_prompts

from stoker.gateway.cli.server_timing import decode_event, delta_text
from stoker.runtime.worker_start import zygote_environment

BATCHING = Path(__file__).with_name("batching.py")
SECONDS_MAXIMUM = 300.0
Prompts = Sequence[Sequence[dict[str, str]]]


@dataclass(frozen=True)
class Stream:
    """One answer: milliseconds to its first token and for each of the others."""

    ttft_ms: float
    tpot_ms: float
    tokens: int
    text: str


def summary(streams: Sequence[Stream], seconds: float) -> dict[str, Any]:
    """What is kept of the streams that ran at once."""
    return {
        "tokens_per_second": sum(stream.tokens for stream in streams) / seconds,
        "seconds": seconds,
        **{
            f"{name}_p{share}": percentile([getattr(s, name) for s in streams], share)
            for name in ("ttft_ms", "tpot_ms")
            for share in (50, 95)
        },
        "streams": [asdict(stream) for stream in streams],
    }


def measure(node: ColdNode, alone: Alone) -> dict[str, Any]:
    """Every number of streams, several times by the one and right after by the other."""
    node.ask("chat")
    taken: dict[str, Any] = {}
    for count in STREAMS:
        pairs = taken.setdefault(str(count), [])
        for number in range(STREAM_PAIRS):
            prompts = stream_prompts(count, number)
            ways = {
                "stoker": lambda prompts=prompts, count=count: through(node, prompts, count),
                "transformers": lambda prompts=prompts, count=count: alone.run(prompts, count),
            }
            order = list(ways) if number % 2 else list(ways)[::-1]
            pairs.append({name: ways[name]() for name in order})
    return taken


def through(node: ColdNode, prompts: Prompts, count: int) -> dict[str, Any]:
    """`count` clients of the gateway at once."""
    return asyncio.run(_through(node, prompts, count))


async def _through(node: ColdNode, prompts: Prompts, count: int) -> dict[str, Any]:
    waiting = list(reversed(prompts))
    done: dict[int, Stream] = {}
    timeout = aiohttp.ClientTimeout(total=SECONDS_MAXIMUM)
    async with aiohttp.ClientSession(
        f"http://127.0.0.1:{node.port}", timeout=timeout, headers=node.authorization()
    ) as session:

        async def client() -> None:
            while waiting:
                number = len(waiting)
                done[-number] = await _stream(session, waiting.pop())

        begun = time.perf_counter()
        async with asyncio.TaskGroup() as clients:
            for _ in range(count):
                clients.create_task(client())
        seconds = time.perf_counter() - begun
    return summary([done[number] for number in sorted(done)], seconds)


async def _stream(session: aiohttp.ClientSession, messages: list[dict[str, str]]) -> Stream:
    body = {
        "model": "chat",
        "messages": messages,
        "max_tokens": STREAM_TOKENS,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    begun = time.perf_counter()
    first = last = 0.0
    words, tokens = [], 0
    async with session.post("/v1/chat/completions", json=body) as response:
        if response.status != 200:
            raise Failed(f"The gateway answered {response.status}: {await response.text()}")
        async for line in response.content:
            if not line.startswith(b"data:"):
                continue
            event = decode_event(line[5:].strip().decode()) or {}
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
            if event.get("choices") and (text := delta_text(event)):
                last = time.perf_counter()
                first = first or last
                words.append(text)
    if not tokens or not words:
        raise Failed("A stream ended without a token, or without its usage.")
    rest = (last - first) * 1000 / max(1, tokens - 1)
    return Stream((first - begun) * 1000, rest, tokens, "".join(words))


class Alone:
    """The process of `batching.py`, which waits for prompts. Raises Failed."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(BATCHING), str(folder), str(STREAM_TOKENS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=dict(zygote_environment(os.environ)),
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def run(self, prompts: Prompts, count: int) -> dict[str, Any]:
        """`count` of the prompts in flight at once."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with deadline(self._process.kill, SECONDS_MAXIMUM):
            self._process.stdin.write(json.dumps({"streams": count, "prompts": prompts}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        if not line:
            raise Failed(f"{BATCHING.name} ended, or took more than {SECONDS_MAXIMUM:g} s.")
        answer = json.loads(line)
        return summary([Stream(**stream) for stream in answer["streams"]], answer["seconds"])


@contextlib.contextmanager
def deadline(act: Callable[[], None], seconds: float) -> Iterator[None]:
    """Do it if what runs inside has not ended by then."""
    timer = threading.Timer(seconds, act)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
