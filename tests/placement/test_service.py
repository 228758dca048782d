import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from harness import web
from harness.waiting import eventually
from stoker.placement.call_signature import HEADER
from stoker.placement.controller import Controller
from stoker.placement.errors import BadRequest, NoCapacity, NotFound
from stoker.placement.memory_store import MemoryStore
from stoker.placement.records import (
    DemandReport,
    FunctionDemand,
    FunctionRecord,
    NodeRecord,
    PlaceAnswer,
    PlaceRequest,
    Scaling,
    decode,
    encode,
)
from stoker.placement.service import BODY_BYTES_MAXIMUM, Placer, create_app
from stoker.placement.settings import Settings, bound_socket
from stoker.placement.store import Fence
from stoker.placement.stores import open_store
from stoker.placement.view import View
from stoker.placement.why import WhyAnswer, WhyRequest

TOKEN = "a cluster token of the test"
FUNCTION = FunctionRecord("f", "ns", "img", scaling=Scaling(maximum=2, concurrency=1))
UNREAL = FunctionDemand(0, 1, 0.0, prefill_seconds=-1.0)
PLACE = encode(PlaceRequest("g", "f.ns", FunctionDemand(0, 1, 0.0)))


class Served:
    def __init__(self, placer: Placer) -> None:
        bound = bound_socket("127.0.0.1", 0)
        self.port = bound.getsockname()[1]
        config = uvicorn.Config(create_app(placer, TOKEN), log_config=None, lifespan="off")
        self._server = uvicorn.Server(config)
        bound.listen()
        self._thread = threading.Thread(target=self._server.run, args=([bound],))
        self._thread.start()

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(10.0)

    def call(
        self, method: str, path: str, body: bytes = b"", token: str | None = TOKEN
    ) -> tuple[int, Any, Any]:
        return call(self.port, method, path, body, token)


def call(
    port: int, method: str, path: str, body: bytes = b"", token: str | None = TOKEN
) -> tuple[int, Any, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10.0)
    try:
        signed = web.signed(TOKEN, method, path, body)
        headers = signed if token == TOKEN else {HEADER: token} if token else {}
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def error_of(payload: bytes) -> Any:
    return json.loads(payload)["error"]


@pytest.fixture(scope="module")
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture(scope="module")
def served(store: MemoryStore) -> Iterator[Served]:
    view = View(store)
    store.put(FUNCTION.path, encode(FUNCTION))
    node = NodeRecord("n", "", 2, 10**9, 10**9, 4, ("n:1", "n:2"))
    store.put(node.path, encode(node))
    controller = Controller(store, view, "me", lambda: 1000.0)
    controller.on_elected(1, Fence("/placement/epoch", store.put("/placement/epoch", b"1")))
    server = Served(controller)
    yield server
    server.close()


def test_a_place_is_answered_with_its_assignments(served: Served) -> None:
    status, headers, payload = served.call("POST", "/place", PLACE)
    assert (status, headers["content-type"]) == (200, "application/json")
    (made,) = decode(PlaceAnswer, payload).assignments
    assert (made.function, made.address) == ("f.ns", "n:1")


def test_a_report_is_taken_without_a_body_in_return(served: Served) -> None:
    report = encode(DemandReport("g", {"f.ns": FunctionDemand(1, 0, 0.0)}))
    assert served.call("POST", "/report", report)[::2] == (204, b"")


def test_a_call_that_waited_is_told_why_it_went_there(served: Served) -> None:
    asked = PlaceRequest("g", "f.ns", FunctionDemand(0, 1, 0.0), ("call-1",))
    _, _, payload = served.call("POST", "/place", encode(asked))
    (made,) = decode(PlaceAnswer, payload).assignments
    status, _, payload = served.call("POST", "/why", encode(WhyRequest("call-1")))
    told = decode(WhyAnswer, payload)
    assert (status, told.instance_id, told.node_id) == (200, made.instance_id, "n")
    assert told.policy == "stoker"
    status, _, payload = served.call("POST", "/why", encode(WhyRequest("another")))
    assert (status, error_of(payload)["code"]) == (404, "not_found")


@pytest.mark.parametrize("calls", [("x" * 129,), tuple(str(n) for n in range(65))])
def test_calls_are_named_in_bounds(served: Served, calls: tuple[str, ...]) -> None:
    asked = PlaceRequest("g", "f.ns", FunctionDemand(0, 1, 0.0), calls)
    status, _, payload = served.call("POST", "/place", encode(asked))
    assert (status, error_of(payload)["code"]) == (400, "bad_request")


def test_metrics_count_decisions_and_need_no_token(served: Served) -> None:
    served.call("POST", "/place", PLACE)
    status, headers, payload = served.call("GET", "/metrics", token=None)
    assert (status, headers["content-type"].split(";")[0]) == (200, "text/plain")
    counted = re.search(rb'placement_decisions_total\{kind="dram"\} (\S+)', payload)
    assert counted
    assert float(counted[1]) >= 1.0
    assert b"placement_decision_seconds_bucket" in payload


def test_health_needs_no_token(served: Served) -> None:
    status, _, payload = served.call("GET", "/healthz", token=None)
    assert (status, json.loads(payload)) == (200, {"status": "ok", "leading": True})


def test_every_route_but_the_open_ones_wants_a_signature(served: Served) -> None:
    placer: Any = None
    routes = {(m, r.path) for r in create_app(placer, TOKEN).routes for m in r.methods or ()}
    wanted = {(m, p) for m, p in routes if p not in ("/healthz", "/metrics")}
    assert len(wanted) >= 3
    own = web.signed(TOKEN, "POST", "/place", PLACE)[HEADER]
    for method, path in wanted:
        for token in (None, "", "wrong", TOKEN + "x", own if path != "/place" else "0" * 64):
            for body in (PLACE, b"\x80\x04\x95\x00."):
                status, _, payload = served.call(method, path, body, token)
                assert (status, error_of(payload)["code"]) == (401, "unauthorized"), path
                assert TOKEN.encode() not in payload


def test_a_signature_is_of_one_body_only(served: Served) -> None:
    other = encode(PlaceRequest("g", "other.ns", FunctionDemand(0, 1, 0.0)))
    own = web.signed(TOKEN, "POST", "/place", PLACE)[HEADER]
    assert served.call("POST", "/place", other, own)[0] == 401
    assert served.call("POST", "/place", PLACE, own)[0] == 200


@pytest.mark.parametrize("token", [None, "", "wrong", TOKEN + "x"])
@pytest.mark.parametrize("path", ["/place", "/report", "/why"])
def test_without_the_token_nothing_is_done(served: Served, path: str, token: str | None) -> None:
    status, _, payload = served.call("POST", path, PLACE, token)
    assert (status, error_of(payload)["code"]) == (401, "unauthorized")
    assert TOKEN.encode() not in payload


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"{", (400, "bad_request")),
        (b"[]", (400, "bad_request")),
        (PLACE.replace(b'"v":1', b'"v":2'), (400, "bad_request")),
        (encode(PlaceRequest("", "f.ns", FunctionDemand(0, 1, 0.0))), (400, "bad_request")),
        (encode(PlaceRequest("g", "../x", FunctionDemand(0, 1, 0.0))), (400, "bad_request")),
        (encode(PlaceRequest("g", "f.ns", FunctionDemand(-1, 1, 0.0))), (400, "bad_request")),
        (encode(PlaceRequest("g", "f.ns", UNREAL)), (400, "bad_request")),
        (encode(PlaceRequest("g", "x.ns", FunctionDemand(0, 1, 0.0))), (404, "function_not_found")),
        (b" " * (BODY_BYTES_MAXIMUM + 1), (413, "payload_too_large")),
    ],
)
def test_a_bad_request_is_refused_by_its_kind(
    served: Served, body: bytes, expected: tuple[int, str]
) -> None:
    status, _, payload = served.call("POST", "/place", body)
    assert (status, error_of(payload)["code"]) == expected


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/place", 405), ("GET", "/x", 404)])
def test_another_route_is_an_error_object_too(
    served: Served, method: str, path: str, status: int
) -> None:
    found, _, payload = served.call(method, path)
    assert found == status
    assert "POST /place" in error_of(payload)["cause"]


class Refusing:
    """A placer that refuses as a controller does."""

    leading = False

    def place(self, request: PlaceRequest) -> PlaceAnswer:
        raise NoCapacity("No node has room.", "Add one.", retry_after_seconds=1.2, node="n")

    def report(self, report: DemandReport) -> None:
        raise ZeroDivisionError("a bug")

    def why(self, name: str) -> WhyAnswer:
        raise NotFound("Nothing is known of it.")

    def metrics(self) -> bytes:
        return b""


@pytest.fixture
def refusing() -> Iterator[Served]:
    server = Served(Refusing())
    yield server
    server.close()


def test_an_error_crosses_with_its_status_and_a_whole_retry_after(refusing: Served) -> None:
    status, headers, payload = refusing.call("POST", "/place", PLACE)
    assert (status, headers["retry-after"]) == (503, "2")
    assert error_of(payload) == {
        "code": "no_capacity",
        "cause": "No node has room.",
        "remedy": "Add one.",
        "details": {"node": "n"},
        "retry_after_seconds": 1.2,
    }


def test_a_bug_is_an_internal_error_that_tells_no_details(refusing: Served) -> None:
    report = encode(DemandReport("g", {}))
    status, _, payload = refusing.call("POST", "/report", report)
    assert (status, error_of(payload)["code"]) == (500, "internal")
    assert b"ZeroDivision" not in payload


def test_settings_have_defaults_below_the_state_directory() -> None:
    assert Settings.from_environment({"STOKER_STATE": "/var/s"}) == Settings(
        store_url="sqlite:///var/s/store.sqlite",
        cluster_token_file=Path("/var/s/auth/cluster-token"),
    )


@pytest.mark.parametrize("bind", ["[::1]:7", "node-1:7"])
def test_a_bind_address_may_be_any_that_others_reach(bind: str) -> None:
    found = Settings.from_environment({"STOKER_PLACEMENT_BIND": bind})
    assert (found.bind_host, found.bind_port) == (bind.rpartition(":")[0].strip("[]"), 7)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("STOKER_PLACEMENT_BIND", "8080"),
        ("STOKER_PLACEMENT_BIND", "host:99999"),
        ("STOKER_PLACEMENT_BIND", "0.0.0.0:8080"),
        ("STOKER_LOG_LEVEL", "loud"),
    ],
)
def test_a_bad_setting_stops_the_start_with_its_name(name: str, value: str) -> None:
    with pytest.raises(BadRequest, match=name):
        Settings.from_environment({name: value})


@pytest.mark.parametrize("content", [None, b"", b"short", b"\xff" * 20])
def test_a_missing_or_weak_token_stops_the_start(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadRequest, match=re.escape(str(path))):
        Settings("sqlite:///x", path).cluster_token()


def test_a_port_in_use_stops_the_start() -> None:
    refused = pytest.raises(BadRequest, match="STOKER_PLACEMENT_BIND")
    with socket.create_server(("127.0.0.1", 0)) as taken, refused:
        bound_socket("127.0.0.1", taken.getsockname()[1])


def process(environment: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "stoker.placement.main"],
        env={**os.environ, **environment},
        stderr=subprocess.PIPE,
    )


def test_a_process_leads_places_and_ends_cleanly_on_sigterm(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    url = f"sqlite://{tmp_path}/store.sqlite"
    store = open_store(url, TOKEN)
    view = View(store)
    started = process(
        {
            "STOKER_STATE": str(tmp_path),
            "STOKER_STORE": url,
            "STOKER_CLUSTER_TOKEN_FILE": str(tmp_path / "token"),
            "STOKER_PLACEMENT_BIND": "127.0.0.1:0",
        }
    )
    try:
        leader = view.wait_for(lambda s: s.leader is not None, 30.0).leader
        assert leader is not None
        store.put(FUNCTION.path, encode(FUNCTION))
        node = NodeRecord("n", "", 2, 10**9, 10**9, 4, ("n:1", "n:2"))
        store.put(node.path, encode(node))
        port = int(leader.address.rpartition(":")[2])
        # The leader hears of the node a moment later than the store.
        eventually(lambda: call(port, "POST", "/place", PLACE)[0] == 200, 10.0)
        _, _, payload = call(port, "POST", "/place", PLACE)
        assert len(decode(PlaceAnswer, payload).assignments) == 1
        started.send_signal(signal.SIGTERM)
        _, log = started.communicate(timeout=20.0)
        assert started.returncode == 0, log.decode()
        view.wait_for(lambda s: s.leader is None, 10.0)
    finally:
        started.kill()
        started.communicate()
        view.close()
        store.close()


def test_a_start_that_cannot_be_says_why_in_one_line(tmp_path: Path) -> None:
    started = process({"STOKER_STATE": str(tmp_path), "STOKER_PLACEMENT_BIND": "nonsense"})
    _, log = started.communicate(timeout=30.0)
    assert started.returncode == 1
    assert log.decode().count("\n") == 1
    assert "STOKER_PLACEMENT_BIND" in log.decode()
