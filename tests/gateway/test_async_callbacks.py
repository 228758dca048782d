"""What X-Callback-Url brings, and to whom it does not go."""

from __future__ import annotations

import pytest
from aiohttp import web as server

from harness.gateway import Bench
from harness.jobs import Receiver, deployed, echo, ended, status, submit
from harness.stack import wait_until


def test_the_outcome_is_posted_to_the_callback(bench: Bench) -> None:
    receiver = Receiver(bench)
    function, _ = deployed(bench, echo)
    sent = {"X_Callback_Url": receiver.url, "Authorization": "Bearer of-the-function"}
    call_id = submit(bench, function, b"answer", **sent).headers["x-call-id"]
    wait_until(lambda: receiver.bodies, "the callback came")

    (headers,) = receiver.headers
    assert (headers["first"], receiver.bodies) == ("POST /hook?a=b HTTP/1.1", [b"answer"])
    assert (headers["x-call-id"], headers["x-function-name"]) == (call_id, function.name)
    assert (headers["x-function-status"], headers["x-own"]) == ("200", "a")
    assert (headers["x-retry"], headers["x-retry-max"]) == ("0", "2")
    assert float(headers["x-duration-seconds"]) >= 0
    assert headers["host"] == receiver.address
    assert not {"authorization", "set-cookie", "x-callback-url"} & set(headers)
    wait_until(lambda: status(bench, call_id)["callback"]["state"] == "done", "it is told")


def test_a_job_that_failed_for_good_is_told_too(bench: Bench) -> None:
    async def answer(request: server.Request) -> server.Response:
        return server.Response(status=500, body=b"why")

    receiver = Receiver(bench)
    function, _ = deployed(bench, answer)
    submit(bench, function, X_Callback_Url=receiver.url)
    wait_until(lambda: receiver.bodies, "the callback came")
    assert (receiver.bodies, len(receiver.headers)) == ([b"why"], 1)
    assert receiver.headers[0]["x-function-status"] == "500"
    assert receiver.headers[0]["x-retry"] == "2"


def test_a_callback_is_repeated_by_itself_and_the_function_is_not(bench: Bench) -> None:
    receiver = Receiver(bench, 503, 200)
    function, worker = deployed(bench, echo)
    call_id = submit(bench, function, X_Callback_Url=receiver.url).headers["x-call-id"]
    wait_until(lambda: len(receiver.bodies) == 2, "the callback came again", 20)
    assert len(worker.requests) == 1
    wait_until(lambda: status(bench, call_id)["callback"]["state"] == "done", "it is told")
    assert status(bench, call_id)["callback"]["runs"] == 2


@pytest.mark.parametrize("code", [302, 307, 404, 410])
def test_a_callback_that_is_refused_or_led_elsewhere_ends(bench: Bench, code: int) -> None:
    receiver = Receiver(bench, code)
    function, _ = deployed(bench, echo)
    call_id = submit(bench, function, X_Callback_Url=receiver.url).headers["x-call-id"]
    ended(bench, call_id, "done")
    wait_until(lambda: status(bench, call_id)["callback"]["state"] == "dead", "it is dead")
    assert (status(bench, call_id)["callback"]["status"], len(receiver.bodies)) == (code, 1)
