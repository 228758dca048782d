"""A job that is an invocation: how a request becomes one, and how it runs.

It runs by the very invoker of the synchronous route, as a request whose client waits: placement,
cold starts, queueing and metrics are the same. What would go to the client is kept as the result.
"""

from __future__ import annotations

import asyncio
import random
import time
import zlib
from collections.abc import Callable, MutableMapping
from typing import Any

import orjson

from stoker.gateway.call import Call
from stoker.gateway.exchange import (
    BufferBudget,
    Headers,
    Reply,
    Request,
    error_answer,
)
from stoker.gateway.headers import HOP_BY_HOP
from stoker.gateway.invoke import Invoker
from stoker.gateway.jobs.pool import Work
from stoker.gateway.jobs.records import Again, Ended, Job, Leased, Outcome, Verdict
from stoker.gateway.jobs.retries import (
    Retries,
    is_deferred,
    is_passing,
    retries_of,
    wait_seconds,
)
from stoker.gateway.upstream import UpstreamResponse
from stoker.placement.errors import (
    BadSpec,
    DeadlineExceeded,
    FunctionNotFound,
    InstanceLost,
    PayloadTooLarge,
    StokerError,
)

INVOKE_QUEUE = "invoke"
CALLBACK_QUEUE = "callback"
RESULT_BYTES_MAXIMUM = 16 << 20
RUN_SECONDS_MAXIMUM = 3600.0
_NOT_KEPT = HOP_BY_HOP | {b"content-length", b"expect", b"x-call-id", b"x-callback-url"}


def invocation_job(
    request: Request,
    call_id: str,
    function_key: str,
    name: str,
    path: str,
    callback_url: str,
    is_ours: Callable[[str], bool],
) -> Job:
    """The request as a job; `is_ours` tells our own credentials, which are not written down."""
    headers = [
        (header.decode("latin-1"), value.decode("latin-1"))
        for header, value in request.headers
        if header not in _NOT_KEPT
        and not header.startswith(b"x-stoker-")
        and not (header == b"authorization" and is_ours(value.decode("latin-1")))
    ]
    head = {
        "name": name,
        "path": path,
        "query": request.query,
        "headers": headers,
        "peer": request.peer,
        "scheme": request.scheme,
        "callback": callback_url,
    }
    digest = f"{path}?{request.query} {len(request.body)} {zlib.crc32(request.body):08x}"
    return Job(INVOKE_QUEUE, call_id, function_key, head, request.body, digest)


class Invocations:
    """The handler of the queue of invocations."""

    def __init__(self, invoker: Invoker, budget: BufferBudget, result_bytes_maximum: int) -> None:
        self._invoker = invoker
        self._budget = budget
        self._result_bytes_maximum = result_bytes_maximum

    async def __call__(self, work: Work) -> Verdict:
        job = work.job
        retries = self._retries(job.key)
        if job.runs > retries.attempts + 1:
            ended = StokerError(
                f"The gateway ended while it ran the job, {job.runs - 1} times.",
                "See the gateway's log for why; retry the job when that is mended.",
            )
            return self._ended(job, "dead", Outcome(ended.status, error=ended.to_wire()), b"")
        kept = _Kept(work, self._budget, self._result_bytes_maximum)
        try:
            began_at = time.monotonic()
            error = await self._invoke(work, kept)
            return self._verdict(work, retries, kept, error, time.monotonic() - began_at)
        finally:
            kept.release()

    async def _invoke(self, work: Work, kept: _Kept) -> StokerError | None:
        """The platform's own error, or None if the function answered."""
        job, surface = work.job, _Surface()
        request = _request(work)
        # Who asked for it was checked when it was accepted.
        call = Call(request, Reply(kept.send), surface, job.id, admitted=True)
        try:
            async with asyncio.timeout(RUN_SECONDS_MAXIMUM):
                await self._invoker.answer(call, job.head["name"], job.head["path"])
        except TimeoutError:
            return DeadlineExceeded(
                f"Expected the job to end within {RUN_SECONDS_MAXIMUM:g} s, found it running.",
                "Ask for less in one job.",
            )
        finally:
            request.release()
        if kept.error is not None:
            return kept.error
        if surface.failure is None and not work.stop.is_set():
            if call.code == DeadlineExceeded.status:
                return DeadlineExceeded("The answer was cut at a timeout of the function.")
            if not kept.whole:
                return InstanceLost("The instance was lost before the answer was whole.")
        return surface.failure

    def _verdict(
        self,
        work: Work,
        retries: Retries,
        kept: _Kept,
        error: StokerError | None,
        seconds: float,
    ) -> Verdict:
        job = work.job
        if error is None and not kept.whole:
            cancelled = {"code": "cancelled", "cause": "The job was cancelled while it ran."}
            return Ended("cancelled", Outcome(0, seconds=seconds, error=cancelled))
        status = kept.status if error is None else error.status
        wire = None if error is None else error.to_wire()
        outcome = Outcome(status, kept.headers, seconds, wire)
        # Where it is the answer that found no room, the function has run.
        ran = error is None or error is kept.error
        if error is not None and not ran and is_deferred(error, time.time() - job.created_at):
            pause = wait_seconds(retries, 1, error.retry_after_seconds or 0.0, _draw())
            return Again(pause, False, outcome)
        failed = status in retries.codes if error is None else is_passing(status)
        if failed and job.runs <= retries.attempts:
            pause = wait_seconds(retries, job.runs, _asked_seconds(kept.headers), _draw())
            return Again(pause, True, outcome)
        state = "dead" if failed or error is not None else "done"
        return self._ended(job, state, outcome, kept.body())

    def _ended(self, job: Leased, state: Any, outcome: Outcome, result: bytes) -> Ended:
        """The last word, and the callback that tells it."""
        url = job.head["callback"]
        if not url:
            return Ended(state, outcome, result)
        head = {"url": url, "retry_maximum": self._retries(job.key).attempts}
        host = url.split("/", 3)[2]
        return Ended(state, outcome, result, Job(CALLBACK_QUEUE, job.id, host, head))

    def _retries(self, function_key: str) -> Retries:
        """Those of the function as it is now; it may be gone."""
        try:
            return retries_of(self._invoker.find(function_key).annotations)
        except (FunctionNotFound, BadSpec):
            return Retries()


class _Surface:
    """Errors of the platform, kept as they are."""

    headers: Headers = []
    token_wanted = False

    def __init__(self) -> None:
        self.failure: StokerError | None = None

    def error(self, error: StokerError) -> tuple[int, Headers, bytes]:
        self.failure = error
        return error_answer(error, "application/json")

    def stream_error(self, error: StokerError) -> bytes:
        self.failure = error
        return orjson.dumps({"error": error.to_wire()})

    async def translated(self, response: UpstreamResponse) -> None:  # noqa: ARG002
        return None


class _Kept:
    """Takes the answer in place of a client, up to `bytes_maximum`."""

    def __init__(self, work: Work, budget: BufferBudget, bytes_maximum: int) -> None:
        self._work = work
        self._budget = budget
        self._bytes_maximum = bytes_maximum
        self._parts: list[bytes] = []
        self._held_bytes = 0
        self.status = 0
        self.whole = False
        self.headers: tuple[tuple[str, str], ...] = ()
        self.error: StokerError | None = None

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = tuple(
                (name.decode("latin-1"), value.decode("latin-1"))
                for name, value in message["headers"]
            )
        elif self.error is None:
            self._keep(message.get("body", b""))
            self.whole = self.error is None and not message.get("more_body", False)

    def _keep(self, part: bytes) -> None:
        try:
            if self._held_bytes + len(part) > self._bytes_maximum:
                raise PayloadTooLarge(
                    f"Expected an answer of at most {self._bytes_maximum} bytes, found more.",
                    "Let the function write it where its reader fetches it.",
                )
            self._budget.take(len(part))
        except StokerError as error:
            # Nobody wants the rest, so the instance is let go as by a client that leaves.
            self.error = error
            self.release()
            self._work.stop.set()
            return
        self._held_bytes += len(part)
        self._parts.append(part)

    def body(self) -> bytes:
        return b"".join(self._parts)

    def release(self) -> None:
        self._parts.clear()
        self._budget.give_back(self._held_bytes)
        self._held_bytes = 0


def _request(work: Work) -> Request:
    """The request that was accepted, from a client that leaves when the job is stopped."""
    head, body = work.job.head, work.body
    sent = False

    async def receive() -> dict[str, Any]:
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}
        await work.stop.wait()
        return {"type": "http.disconnect"}

    scope = {
        "type": "http",
        "method": "POST",
        "path": head["path"],
        "raw_path": head["path"].encode("latin-1"),
        "query_string": head["query"].encode("latin-1"),
        "headers": [(n.encode("latin-1"), v.encode("latin-1")) for n, v in head["headers"]],
        "scheme": head["scheme"],
        "client": (head["peer"], 0),
    }
    # The pool has taken these bytes from the gateway's budget already.
    return Request(scope, receive, BufferBudget(len(body)))


def _asked_seconds(headers: tuple[tuple[str, str], ...]) -> float:
    """Retry-After in seconds; 0 if there is none, or a date."""
    given = next((value for name, value in headers if name == "retry-after"), "")
    return float(given) if given.isdigit() and len(given) < 6 else 0.0


def _draw() -> float:
    return random.random()  # noqa: S311 - spreads retries, guards nothing
