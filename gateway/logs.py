"""GET /system/logs: the logs of one function, merged from every node.

It is no Flask route: a followed log would hold a thread for as long as its reader stays.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime
from typing import Protocol
from urllib.parse import parse_qs

import orjson
import structlog

from stoker.gateway.access import check_control, unauthorized
from stoker.gateway.auth import Credentials
from stoker.gateway.exchange import ClientGone, Headers, Reply, Request, error_answer
from stoker.placement.errors import BadRequest, FunctionNotFound, StokerError
from stoker.placement.names import DEFAULT_NAMESPACE
from stoker.placement.records import NodeRecord
from stoker.placement.view import Snapshot

LINES_MAXIMUM = 10_000
FOLLOWED_LINES_MAXIMUM = 1_000
SECONDS_MAXIMUM = 30.0
# What the clients of this route expect of a bad query.
BAD_QUERY_STATUS = 422
_FLAGS = {"": False, "0": False, "false": False, "1": True, "true": True}

_log = structlog.get_logger()


class LogReader(Protocol):
    def log_lines(self, node: NodeRecord, parameters: dict[str, str]) -> AsyncIterator[bytes]:
        """The lines of one node as they come."""


class SystemLogs:
    def __init__(
        self, snapshot: Callable[[], Snapshot], agents: LogReader, credentials: Credentials
    ) -> None:
        self._snapshot = snapshot
        self._agents = agents
        self._credentials = credentials

    async def route(self, request: Request, reply: Reply) -> None:
        try:
            caller = self._credentials.caller(request.header(b"authorization"))
            if caller is None:
                raise unauthorized()
            check_control(caller, request.method, request.path, parse_qs(request.query), b"")
            if request.method != "GET":
                await reply.whole(405, [(b"allow", b"GET")], b"")
                return
            parameters, follow = self._parameters(request.query)
            await request.read(0)
            async with request.while_connected():
                await self._answer(reply, parameters, follow)
        except ClientGone:
            return
        except StokerError as error:
            status, headers, body = error_answer(error, request.header(b"accept"))
            if isinstance(error, BadRequest):
                status = BAD_QUERY_STATUS
            await reply.whole(status, headers, body)

    async def _answer(self, reply: Reply, parameters: dict[str, str], follow: bool) -> None:
        nodes = list(self._snapshot().nodes.values())
        headers: Headers = [(b"content-type", b"application/x-ndjson")]
        if follow:
            await reply.start(200, headers)
            await self._follow(reply, nodes, parameters)
            return
        tail = int(parameters["tail"])
        async with asyncio.timeout(SECONDS_MAXIMUM):
            found = await asyncio.gather(*(self._read(node, parameters) for node in nodes))
        merged = list(heapq.merge(*(sorted(lines) for lines in found)))
        await reply.whole(200, headers, b"".join(line for _, line in merged[-tail:]))

    async def _read(self, node: NodeRecord, parameters: dict[str, str]) -> list[tuple[str, bytes]]:
        """What one node has; a node that does not answer must not hide the others' lines."""
        try:
            found = self._agents.log_lines(node, parameters)
            lines = [(_timestamp(line), line) async for line in found]
        except StokerError as error:
            _log.warning("logs_unreadable", node=node.node_id, cause=error.cause)
            return []
        return lines[-LINES_MAXIMUM:]

    async def _follow(
        self, reply: Reply, nodes: Sequence[NodeRecord], parameters: dict[str, str]
    ) -> None:
        """Lines as they come, until the client leaves or no node has anything left to say."""
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(FOLLOWED_LINES_MAXIMUM)

        async def pump(node: NodeRecord) -> None:
            try:
                async for line in self._agents.log_lines(node, parameters):
                    await queue.put(line)
            except StokerError as error:
                _log.warning("logs_unreadable", node=node.node_id, cause=error.cause)
            await queue.put(None)

        tasks = [asyncio.create_task(pump(node)) for node in nodes]
        try:
            running = len(tasks)
            while running:
                line = await queue.get()
                if line is None:
                    running -= 1
                else:
                    await reply.write(line)
            await reply.finish()
        finally:
            for task in tasks:
                task.cancel()

    def _parameters(self, query: str) -> tuple[dict[str, str], bool]:
        """The agents' parameters in a query string, and whether to follow; BadRequest."""
        given = {name: values[-1] for name, values in parse_qs(query).items()}
        name = given.get("name", "")
        follow = _FLAGS.get(given.get("follow", "").lower())
        tail = given.get("tail", "")
        if not name or follow is None or (tail and not tail.lstrip("-").isdigit()):
            raise BadRequest(
                f"Expected name, tail (a number) and follow (0 or 1), found {query!r:.200}.",
                "Correct the query.",
            )
        if since := given.get("since"):
            _check_moment(since)
        namespace = given.get("namespace") or DEFAULT_NAMESPACE
        key = name if "." in name else f"{name}.{namespace}"
        if key not in self._snapshot().functions:
            raise FunctionNotFound(
                f"Expected a deployed function, found none called {key!r:.80}.",
                "Deploy it first; `stoker ls` lists what is deployed.",
            )
        wanted = int(tail or 0)
        bounded = min(wanted, LINES_MAXIMUM) if wanted > 0 else LINES_MAXIMUM
        parameters = {"function": key, "tail": str(bounded), "follow": str(int(follow))}
        for optional in ("since", "instance"):
            if given.get(optional):
                parameters[optional] = given[optional]
        return parameters, follow


def _check_moment(text: str) -> None:
    try:
        zone = datetime.fromisoformat(text).tzinfo
    except ValueError:
        zone = None
    if zone is None:
        raise BadRequest(
            f"Expected an RFC 3339 time with its zone as since, found {text!r:.80}.",
            "Correct the query.",
        )


def _timestamp(line: bytes) -> str:
    try:
        return str(orjson.loads(line)["timestamp"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return ""
