"""Talks to node agents: pins or evicts a checkpoint, looks at loads, reads functions' logs."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Mapping, Sequence

import aiohttp
from yarl import URL

from stoker.gateway.internal import wire_error
from stoker.placement.call_signature import HEADER, call_signature
from stoker.placement.errors import StokerError, Unavailable
from stoker.placement.load_answer import LoadAnswer
from stoker.placement.records import (
    CheckpointRef,
    EvictRequest,
    NodeRecord,
    ResolveRequest,
    decode,
    encode,
)

# Reading the headers of a sharded checkpoint in a far bucket takes its time.
RESOLVE_SECONDS = 120.0
CONNECT_SECONDS = 5.0
# Who looks at a load looks again soon.
LOOK_SECONDS = 1.0
LINE_BYTES_MAXIMUM = 64 * 1024


class AgentClient:
    def __init__(self, session: aiohttp.ClientSession, cluster_token: str) -> None:
        self._session = session
        self._cluster_token = cluster_token

    async def resolve(self, nodes: Sequence[NodeRecord], asked: ResolveRequest) -> CheckpointRef:
        """Have one node pin what is asked for; the checkpoint's error, or Unavailable."""
        ready = [node for node in nodes if node.zygote_ready] or list(nodes)
        if not ready:
            raise Unavailable(
                "No node is up to read the checkpoint.", "Start a node, then deploy again."
            )
        node = random.choice(ready)  # noqa: S311 - spreads the work, protects nothing
        return decode(CheckpointRef, await self._post(node, "/resolve", asked))

    async def evict(self, nodes: Sequence[NodeRecord], asked: EvictRequest) -> None:
        """Have every node drop a checkpoint; the error of the first that cannot."""
        await asyncio.gather(*(self._post(node, "/evict", asked) for node in nodes))

    async def _post(self, node: NodeRecord, path: str, asked: object) -> bytes:
        sent = encode(asked)
        try:
            async with self._session.post(
                f"http://{node.agent_address}{path}",
                data=sent,
                headers=self._headers("POST", path, sent),
                timeout=aiohttp.ClientTimeout(total=RESOLVE_SECONDS, connect=CONNECT_SECONDS),
                allow_redirects=False,
            ) as response:
                body = await response.read()
                if response.status >= 300:
                    raise wire_error(response.status, body, f"node {node.node_id}")
                return body
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _unreachable(node, error) from error

    async def loaded_bytes(self, node: NodeRecord, digest: str) -> int:
        """Bytes of a checkpoint's weights in the node's memory by now; StokerError."""
        path = f"/loads/{digest}"
        try:
            async with self._session.get(
                f"http://{node.agent_address}{path}",
                headers=self._headers("GET", path),
                timeout=aiohttp.ClientTimeout(total=LOOK_SECONDS),
                allow_redirects=False,
            ) as response:
                body = await response.read()
                if response.status >= 300:
                    raise wire_error(response.status, body, f"node {node.node_id}")
                return decode(LoadAnswer, body).loaded_bytes
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _unreachable(node, error) from error

    def _headers(self, method: str, target: str, body: bytes = b"") -> dict[str, str]:
        signature = call_signature(self._cluster_token, method, target, body)
        return {HEADER: signature, "Content-Type": "application/json"}

    async def log_lines(
        self, node: NodeRecord, parameters: Mapping[str, str]
    ) -> AsyncIterator[bytes]:
        """The lines of GET /logs on one node, as they come; StokerError if it cannot be read."""
        url = URL(f"http://{node.agent_address}/logs").with_query(parameters)
        try:
            async with self._session.get(
                url,
                headers=self._headers("GET", url.raw_path_qs),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
                allow_redirects=False,
            ) as response:
                if response.status >= 300:
                    body = await response.read()
                    raise wire_error(response.status, body, f"node {node.node_id}")
                async for line in response.content:
                    yield line
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise _unreachable(node, error) from error


def _unreachable(node: NodeRecord, error: Exception) -> StokerError:
    return Unavailable(
        f"Expected an answer of node {node.node_id} at {node.agent_address}, "
        f"found: {error or type(error).__name__}.",
        "Look whether its agent runs, then try again.",
        retry_after_seconds=1,
    )
