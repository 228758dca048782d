from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from starlette.routing import Route

from harness import web
from stoker.placement.errors import CheckpointMissing, Conflict, SourceUnavailable
from stoker.placement.load_answer import LoadAnswer
from stoker.placement.records import (
    CheckpointRef,
    EvictRequest,
    ResolveRequest,
    decode,
    encode,
)
from stoker.runtime.agent_http import Server, application
from stoker.runtime.checkpoint.tiers import Resident
from stoker.runtime.function_logs import FunctionLogs
from stoker.runtime.spare_sockets import address_of, listen

TOKEN = "cluster-token-of-the-tests"
REF = CheckpointRef("s3://models/m", "a" * 64, 10, True)
ADAPTER = CheckpointRef("s3://models/a", "b" * 64, 5, False)
T = TypeVar("T")


class Checkpoints:
    """A cache without checkpoints; `evicted` is what it was told to drop."""

    def __init__(self) -> None:
        self.evicted: list[tuple[str, bool]] = []

    def resolve(self, uri: str, adapter: bool) -> CheckpointRef:
        if uri == "s3://models/gone":
            raise CheckpointMissing("Nothing is at s3://models/gone.", "Push it.")
        if uri == "s3://models/busy":
            raise SourceUnavailable("The source is busy.", retry_after_seconds=7)
        return ADAPTER if adapter else REF

    def evict(self, digest: str, *, disk: bool) -> None:
        if digest != REF.digest:
            raise Conflict("Expected it idle.", "Scale to 0.")
        self.evicted.append((digest, disk))

    def residents(self) -> list[Resident]:
        return [Resident(REF.digest, 7, 3), Resident(ADAPTER.digest, 5, 5)]

    def lend(self, digest: str, ordinal: int) -> None:
        return None


def serve(
    tmp_path: Path,
    client: Callable[[str, FunctionLogs], T],
    checkpoints: Checkpoints | None = None,
) -> T:
    """Run `client` in a thread against the served application."""

    async def run() -> T:
        logs = FunctionLogs(tmp_path)
        listening = listen("127.0.0.1", 0)
        server = Server(
            application(TOKEN, checkpoints or Checkpoints(), logs, lambda: {"instances": 2})
        )
        serving = asyncio.ensure_future(server.serve(sockets=[listening]))
        try:
            return await asyncio.to_thread(client, address_of(listening), logs)
        finally:
            server.should_exit = True
            await serving

    return asyncio.run(run())


def call(method: str, url: str, body: object = None, token: str = TOKEN) -> web.Answer:
    """As one of our own processes; a `token` that is not the cluster's is shown as it is."""
    sent = body if body is None or isinstance(body, bytes | str) else json.dumps(body)
    signed = web.signed(TOKEN, method, url, sent)
    headers = signed if token == TOKEN else {"X-Stoker-Token": token}
    return web.call(method, f"http://{url}", sent, headers)


def test_resolve_answers_the_pinned_checkpoint(tmp_path: Path) -> None:
    answer = serve(
        tmp_path, lambda at, _: call("POST", f"{at}/resolve", encode(ResolveRequest(REF.uri)))
    )
    assert answer.status == 200
    assert decode(CheckpointRef, answer.body) == REF


def test_resolve_pins_an_adapter_where_one_is_asked_for(tmp_path: Path) -> None:
    asked = encode(ResolveRequest(ADAPTER.uri, adapter=True))
    answer = serve(tmp_path, lambda at, _: call("POST", f"{at}/resolve", asked))
    assert decode(CheckpointRef, answer.body) == ADAPTER


@pytest.mark.parametrize(
    ("uri", "status", "code"),
    [("s3://models/gone", 400, "checkpoint_missing"), ("s3://models/busy", 503, None)],
)
def test_what_resolve_refuses_is_a_typed_error(
    tmp_path: Path, uri: str, status: int, code: str | None
) -> None:
    answer = serve(
        tmp_path, lambda at, _: call("POST", f"{at}/resolve", encode(ResolveRequest(uri)))
    )
    assert answer.status == status
    assert answer.json()["error"]["code"] == (code or "source_unavailable")
    assert answer.headers.get("retry-after") == (None if code else "7")


def test_a_load_tells_how_much_of_it_is_in_memory(tmp_path: Path) -> None:
    def client(at: str, _logs: FunctionLogs) -> list[int]:
        digests = (REF.digest, "c" * 64)
        answers = [call("GET", f"{at}/loads/{digest}").body for digest in digests]
        return [decode(LoadAnswer, answer).loaded_bytes for answer in answers]

    assert serve(tmp_path, client) == [7, 0]


def test_evict_drops_an_idle_checkpoint_and_refuses_a_busy_one(tmp_path: Path) -> None:
    checkpoints = Checkpoints()

    def client(at: str, _logs: FunctionLogs) -> list[int]:
        asked = (EvictRequest(REF.digest), EvictRequest(REF.digest, True), EvictRequest("b" * 64))
        return [call("POST", f"{at}/evict", encode(each)).status for each in asked]

    assert serve(tmp_path, client, checkpoints) == [204, 204, 409]
    assert checkpoints.evicted == [(REF.digest, False), (REF.digest, True)]


@pytest.mark.parametrize("body", [b"", b"not json", b'{"v": 1}', b'{"v": 9, "uri": "x"}'])
def test_a_body_that_is_no_resolve_request_is_a_bad_request(tmp_path: Path, body: bytes) -> None:
    answer = serve(tmp_path, lambda at, _: call("POST", f"{at}/resolve", body))
    assert (answer.status, answer.json()["error"]["code"]) == (400, "bad_request")


def test_a_body_without_bound_is_refused(tmp_path: Path) -> None:
    answer = serve(tmp_path, lambda at, _: call("POST", f"{at}/resolve", b"x" * 70_000))
    assert answer.status == 413


@pytest.mark.parametrize(
    "path", ["/resolve", "/evict", "/logs?function=a.b", f"/chunks/{'a' * 64}/0"]
)
@pytest.mark.parametrize("token", ["", "wrong", "\xe9"])
def test_without_the_cluster_token_nothing_is_answered(
    tmp_path: Path, path: str, token: str
) -> None:
    method = "POST" if path in ("/resolve", "/evict") else "GET"
    answer = serve(tmp_path, lambda at, _: call(method, at + path, token=token))
    assert (answer.status, answer.json()["error"]["code"]) == (401, "unauthorized")
    assert TOKEN.encode() not in answer.body


def test_no_route_but_the_probe_is_open(tmp_path: Path) -> None:
    app = application(TOKEN, Checkpoints(), FunctionLogs(tmp_path), dict)
    routes = [r for r in app.routes if isinstance(r, Route) and r.path != "/healthz"]
    assert len(routes) >= 4
    for route in routes:
        path = route.path.format(digest="a" * 64, ordinal=0)
        for method in route.methods or ():
            for body in (b"{}", b"\x80\x04\x95\x00."):
                answer = serve(
                    tmp_path, lambda at, _, m=method, p=path, b=body: call(m, at + p, b, "no")
                )
                assert answer.status == 401, path


def test_a_probe_needs_no_token(tmp_path: Path) -> None:
    answer = serve(tmp_path, lambda at, _: call("GET", f"{at}/healthz", token=""))
    assert (answer.status, answer.json()) == (200, {"instances": 2})


def test_an_unknown_path_is_a_typed_error(tmp_path: Path) -> None:
    answer = serve(tmp_path, lambda at, _: call("GET", f"{at}/nothing"))
    assert (answer.status, answer.json()["error"]["code"]) == (404, "not_found")


def texts(body: bytes) -> list[str]:
    return [json.loads(line)["text"] for line in body.splitlines()]


def test_logs_answers_lines_by_tail_and_instance(tmp_path: Path) -> None:
    def client(at: str, logs: FunctionLogs) -> list[list[str]]:
        logs.append("f.ns", "i-1", ["one", "two"])
        logs.append("f.ns", "i-2", ["three"])
        queries = ("", "&tail=2", "&instance=i-2", "&since=2999-01-01T00:00:00Z")
        return [texts(call("GET", f"{at}/logs?function=f.ns{q}").body) for q in queries]

    assert serve(tmp_path, client) == [["one", "two", "three"], ["two", "three"], ["three"], []]


@pytest.mark.parametrize(
    "query",
    [
        "",
        "function=a/../b.ns",
        "function=f.ns&tail=x",
        "function=f.ns&tail=-1",
        "function=f.ns&follow=yes",
        "function=f.ns&since=yesterday",
        "function=f.ns&since=2026-01-01T00:00:00",
    ],
)
def test_a_bad_log_query_is_a_bad_request(tmp_path: Path, query: str) -> None:
    answer = serve(tmp_path, lambda at, _: call("GET", f"{at}/logs?{query}"))
    assert (answer.status, answer.json()["error"]["code"]) == (400, "bad_request")


def test_follow_sends_each_line_as_it_comes_and_ends_with_its_reader(tmp_path: Path) -> None:
    async def run() -> tuple[list[str], int]:
        logs = FunctionLogs(tmp_path)
        logs.append("f.ns", "i", ["before"])
        listening = listen("127.0.0.1", 0)
        server = Server(application(TOKEN, Checkpoints(), logs, dict))
        serving = asyncio.ensure_future(server.serve(sockets=[listening]))
        connection = http.client.HTTPConnection(address_of(listening), timeout=10)

        def begin() -> http.client.HTTPResponse:
            path = "/logs?function=f.ns&follow=1"
            connection.request("GET", path, headers=web.signed(TOKEN, "GET", path))
            return connection.getresponse()

        response = await asyncio.to_thread(begin)
        lines = [await asyncio.to_thread(response.readline)]
        logs.append("f.ns", "i", ["after"])
        lines.append(await asyncio.to_thread(response.readline))
        response.close()
        connection.close()
        for _ in range(500):
            if not logs._followers:
                break
            await asyncio.sleep(0.01)
        server.should_exit = True
        await serving
        return texts(b"".join(lines)), len(logs._followers)

    assert asyncio.run(run()) == (["before", "after"], 0)
