"""Many streams at once, warm: through the gateway, and by continuous batching alone.

The second is `batching.py` in a process of its own, with the sizes, the threads and the
environment that a worker has.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
from cold_node import ColdNode
from figures import percentile
from http_client import Failed
from starts import STREAM_TOKENS, STREAMS, stream_prompts

from stoker.gateway.cli.server_timing import decode_event, delta_text
from stoker.runtime.worker_start import zygote_environment

BATCHING = Path(__file__).with_name("batching.py")
SECONDS_MAXIMUM = 300.0


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


def measure_node(node: ColdNode) -> dict[str, Any]:
    """Every number of streams, through the gateway."""
    node.ask("chat")
    return {str(count): asyncio.run(_through(node, count)) for count in STREAMS}


async def _through(node: ColdNode, count: int) -> dict[str, Any]:
    waiting = list(reversed(stream_prompts(count)))
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


def measure_alone(folder: Path) -> dict[str, Any]:
    """Every number of streams, by transformers' continuous batching in a process. Raises Failed."""
    request = {str(count): stream_prompts(count) for count in STREAMS}
    ran = subprocess.run(
        [sys.executable, "-P", str(BATCHING), str(folder), str(STREAM_TOKENS)],
        input=json.dumps(request),
        env=dict(zygote_environment(os.environ)),
        capture_output=True,
        text=True,
        timeout=SECONDS_MAXIMUM,
        check=False,
    )
    if ran.returncode != 0:
        raise Failed(" | ".join(ran.stderr.splitlines()[-3:])[-500:])
    answers: Mapping[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return {
        count: summary([Stream(**stream) for stream in answer["streams"]], answer["seconds"])
        for count, answer in answers.items()
    }
