"""The hot path: one request to one instance of a function, streamed both ways.

    client ──> read the body ──> slot (router) ──> instance ──> head ──> chunk, chunk, … ──> end
                                    ^                 │
                                    └── not taken: ───┘  at most 3 tries, while nothing was sent

No framework, no I/O but the two connections. Whatever ends the client's connection ends the
instance's at once.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import orjson
import structlog

from stoker.gateway.access import check_invoke
from stoker.gateway.auth import Credentials
from stoker.gateway.call import Call, Surface, Translated
from stoker.gateway.deadline import Deadline, LastWords, plain_words
from stoker.gateway.exchange import ClientGone, Headers, Reply, Request, error_answer
from stoker.gateway.headers import (
    call_id_of,
    client_headers,
    dispatch_headers,
    instance_headers,
)
from stoker.gateway.limits import Limiter, Subject, subjects
from stoker.gateway.metrics import Metrics
from stoker.gateway.router import LOST_SECONDS, Router, Slot
from stoker.gateway.sse import EventRelay, Events, error_event
from stoker.gateway.stream_log import LoggedEvents, resumable, resume_of, same_model
from stoker.gateway.upstream import NotTaken, Upstream, UpstreamResponse
from stoker.gateway.waiting import comment
from stoker.placement.errors import (
    DeadlineExceeded,
    FunctionNotFound,
    InstanceError,
    InstanceLost,
    StokerError,
    Unavailable,
)
from stoker.placement.names import DEFAULT_NAMESPACE
from stoker.placement.records import FunctionRecord
from stoker.placement.resumable import StreamLog
from stoker.placement.token_record import TokenRecord
from stoker.placement.view import Snapshot

TRIES_MAXIMUM = 3
# So often one stream goes on after an instance was lost: its own request may be what kills them.
RESUMES_MAXIMUM = 8
# A prompt has about one token for so many bytes of its request.
TOKEN_BYTES = 4
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")
CLIENT_GONE_CODE = 499
_PREFILL = re.compile(r"\bprefill;dur=([0-9]{1,9}(?:\.[0-9]{1,9})?)(?![\w.])")
PREFILL_SECONDS_MAXIMUM = 3600.0
_OF_THE_BODY = frozenset({b"content-encoding", b"content-length", b"content-type"})
_PATH = re.compile(r"/function/([-a-zA-Z_0-9.]+)(/.*)?", re.DOTALL)

_log = structlog.get_logger()


class FunctionSurface:
    """/function/*: a sentence, or the error's wire form for who accepts JSON."""

    token_wanted = False

    def __init__(self, request: Request) -> None:
        self.headers: Headers = []
        self._accept = request.header(b"accept")

    def error(self, error: StokerError) -> tuple[int, Headers, bytes]:
        return error_answer(error, self._accept)

    def stream_error(self, error: StokerError) -> bytes:
        return orjson.dumps({"error": error.to_wire()})

    async def translated(self, response: UpstreamResponse) -> Translated | None:  # noqa: ARG002
        return None


class Invoker:
    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        router: Router,
        upstream: Upstream,
        metrics: Metrics,
        credentials: Credentials,
        cluster_token: str,
        body_bytes_maximum: int,
        token_wanted: bool,
        limiter: Limiter,
    ) -> None:
        self._snapshot = snapshot
        self._router = router
        self._upstream = upstream
        self._metrics = metrics
        self._credentials = credentials
        self._cluster_token = cluster_token
        self._body_bytes_maximum = body_bytes_maximum
        self._token_wanted = token_wanted
        self._limiter = limiter

    async def function_route(
        self, request: Request, reply: Reply, hosted: str | None = None
    ) -> None:
        """Answer /function/<name>[.<namespace>][/path], or any path of the function `hosted`."""
        call = Call(request, reply, FunctionSurface(request), call_id_of(request))
        if request.method not in METHODS:
            allow = (b"allow", ", ".join(METHODS).encode())
            await reply.whole(405, [allow, *call.headers()], b"")
            return
        if hosted is not None:
            await self.answer(call, hosted, request.path)
            return
        matched = _PATH.fullmatch(request.path)
        await self.answer(call, matched[1] if matched else "", (matched and matched[2]) or "/")

    async def answer(self, call: Call, name: str, path: str) -> None:
        """Answer the call by the function called `name`, or with a typed error."""
        try:
            call.function = self.find(name)
            self._metrics.begin(call.function.key)
            if not call.admitted:
                wanted = call.surface.token_wanted
                call.caller = self.admit(call.request, call.function, token_wanted=wanted)
            if not call.request.body:
                await call.request.read(self._body_bytes_maximum)
            async with call.request.while_connected():
                await self._serve_in_time(call, call.function, path)
        except ClientGone:
            call.code = CLIENT_GONE_CODE
        except StokerError as error:
            await self.refuse(call, error)
        finally:
            await call.has_begun()
            if call.function is not None:
                seconds = time.monotonic() - call.arrived_at
                self._metrics.end(call.function.key, call.code or call.reply.status, seconds)

    @asynccontextmanager
    async def _admitted(self, call: Call, limited: Sequence[Subject]) -> AsyncIterator[None]:
        """Hold a place in every limit that counts for the call."""
        began_at = time.monotonic()
        async with AsyncExitStack() as places:
            for subject in limited:
                await places.enter_async_context(self._limiter.admitted(subject))
            call.queue_seconds += time.monotonic() - began_at
            yield

    def admit(
        self, request: Request, function: FunctionRecord, *, token_wanted: bool
    ) -> TokenRecord | None:
        """Who calls, None if nobody known; Unauthorized or Forbidden if he may not."""
        authorization = request.header(b"authorization")
        caller = self._credentials.caller(authorization) if authorization else None
        check_invoke(caller, function, token_wanted=token_wanted or self._token_wanted)
        return caller

    async def start(self, call: Call, function: FunctionRecord) -> None:
        """Have placement give the function an instance, unless it has one; its error if not."""
        async with call.request.while_connected():
            self._router.release(await self._acquire(call, function, again=False))

    async def refuse(self, call: Call, error: StokerError) -> None:
        """Answer with a platform error; in the stream, if it has begun."""
        status, headers, body = call.surface.error(error)
        if await call.has_begun():
            call.code = status
            await call.reply.finish(error_event(call.surface.stream_error(error)))
            return
        await call.reply.whole(status, [*headers, *call.headers()], body)

    def find(self, name: str) -> FunctionRecord:
        """The function called `name` or `name.namespace`; FunctionNotFound."""
        key = name if "." in name else f"{name}.{DEFAULT_NAMESPACE}"
        function = self._snapshot().functions.get(key)
        if function is None:
            raise FunctionNotFound(
                f"Expected a deployed function, found none called {name!r:.80}.",
                "Deploy it first; `stoker ls` lists what is deployed.",
            )
        return function

    async def _serve_in_time(self, call: Call, function: FunctionRecord, path: str) -> None:
        if function.timeouts is None:
            await self._serve(call, function, path)
            return
        call.deadline = Deadline(function.timeouts, call.arrived_at, function.key)
        await call.deadline.hold(self._serve(call, function, path), call.reply)
        if call.deadline.expired:
            call.code = DeadlineExceeded.status

    async def _serve(self, call: Call, function: FunctionRecord, path: str) -> None:
        """Forward it, within the limits that count for it."""
        limited = subjects(function, call.caller)
        if not limited:
            await self._forward(call, function, path)
            return
        async with self._admitted(call, limited):
            await self._forward(call, function, path)

    async def _forward(self, call: Call, function: FunctionRecord, path: str) -> None:
        request = call.request
        target_path = f"{path}?{request.query}" if request.query else path
        headers = instance_headers(
            request,
            call.call_id,
            call.start_nanoseconds,
            self._credentials.is_ours,
        )
        if resumable(function):
            call.log = StreamLog()
        tries = resumes = 0
        while tries < TRIES_MAXIMUM and resumes <= RESUMES_MAXIMUM:
            slot = await self._acquire(call, function, again=tries + resumes > 0)
            dispatched_at = time.monotonic()
            lasted: float | None = None
            tries += 1
            try:
                if call.broken_off:
                    self._check_model(call, function, slot)
                to_instance = dispatch_headers(slot.target.instance_id, self._cluster_token)
                extra, body = resume_of(call.log, request.body)
                response = await self._upstream.open(
                    slot.target.address,
                    request.method,
                    target_path,
                    [*headers, *to_instance, *extra],
                    body,
                )
                try:
                    await self._relay(call, slot, response)
                finally:
                    response.close()
                lasted = time.monotonic() - dispatched_at
                return
            except NotTaken:
                self._router.drop(slot)
            except InstanceLost as error:
                self._router.drop(slot, LOST_SECONDS)
                if call.broken_off:
                    tries, resumes = 0, resumes + 1
                    self._metrics.resumed(function.key)
                    _log.warning("stream_goes_on", function=slot.function, call_id=call.call_id)
                elif call.relayed or not _repeatable(error, slot, function):
                    raise
            finally:
                self._router.release(slot, lasted)
        raise Unavailable(
            f"Expected an instance of {function.key} to take the request, "
            f"found none in {TRIES_MAXIMUM} tries.",
            "Send the request again.",
            retry_after_seconds=1,
        )

    def _check_model(self, call: Call, function: FunctionRecord, slot: Slot) -> None:
        """Unavailable where the slot's instance has another model than told the first part."""
        if slot.target.generation == call.generation:
            return
        present = self._snapshot().functions.get(function.key)
        known = {f.generation: f for f in (function, present) if f is not None}
        before, now = known.get(call.generation), known.get(slot.target.generation)
        if before is None or now is None or not same_model(before, now):
            raise Unavailable(
                f"Expected an instance of {function.key} with the model that began this answer, "
                "found that it was deployed with another one.",
                "Send the request again.",
                retry_after_seconds=1,
            )

    async def _acquire(self, call: Call, function: FunctionRecord, *, again: bool) -> Slot:
        began_at = time.monotonic()
        try:
            tokens = len(call.request.body) // TOKEN_BYTES if function.checkpoint else 0
            slot = await self._router.acquire(function, call.call_id, again=again, tokens=tokens)
        except StokerError:
            call.queue_seconds += time.monotonic() - began_at
            raise
        call.queue_seconds += slot.queue_seconds
        call.place_seconds += slot.place_seconds
        return slot

    async def _relay(self, call: Call, slot: Slot, response: UpstreamResponse) -> None:
        """Pass the response on, each chunk as it comes."""
        reply = call.reply
        changed = await call.surface.translated(response)
        # The head goes out with the first bytes, so that a loss before them has its own status.
        chunk, ended = (changed.body, True) if changed is not None else await response.read_some()
        call.relayed, call.generation = True, slot.target.generation
        if not slot.target.serving:
            self._metrics.cold_start(slot.function, time.monotonic() - call.arrived_at)
        stages = response.header("Server-Timing")
        slot.prefill_seconds = prefill_seconds(stages)
        events = _events_of(call.log, response)
        has_begun, deadline = await call.has_begun(), call.deadline
        if deadline is not None:
            deadline.begin(_last_words(call.surface, response, is_events=events is not None))
        if not has_begun:
            status, headers = _head(response, changed)
            await reply.start(status, [*headers, *call.headers(slot.target.instance_id, stages)])
        elif events is None:
            await _end_stream(call, response, changed)
            return
        elif not call.broken_off:
            await reply.write(comment(f"server-timing {call.timing(stages)}"))
        call.streams = events is not None
        try:
            while not ended:
                await reply.write(events.feed(chunk) if events else chunk)
                if deadline is not None:
                    deadline.wrote()
                chunk, ended = await response.read_some()
            await reply.finish(events.feed(chunk) + events.rest() if events else chunk)
        except InstanceLost as error:
            if call.broken_off:
                raise
            call.code = error.status
            self._router.drop(slot, LOST_SECONDS)
            _log.warning("stream_lost", function=slot.function, call_id=call.call_id)
            if events is not None:
                await reply.finish(error_event(call.surface.stream_error(error)))
            # Otherwise the reply stays unfinished, and the client sees a broken body.


def _head(response: UpstreamResponse, changed: Translated | None) -> tuple[int, Headers]:
    headers = client_headers(response.raw_headers)
    if changed is None:
        return response.status, headers
    headers = [header for header in headers if header[0] not in _OF_THE_BODY]
    length = (b"content-length", str(len(changed.body)).encode())
    return changed.status, [*headers, *changed.headers, length]


async def _end_stream(call: Call, response: UpstreamResponse, changed: Translated | None) -> None:
    """The instance refused what a stream has begun for."""
    call.code = response.status
    if changed is None:
        found = f"Expected an event stream of the function, found status {response.status}."
        data = call.surface.stream_error(InstanceError(found, "See its log."))
    else:
        data = changed.body
    await call.reply.finish(error_event(data))


def prefill_seconds(stages: str) -> float:
    """Of an instance's Server-Timing; 0 if it has no prefill, or nonsense."""
    found = _PREFILL.search(stages)
    return min(float(found[1]) / 1000, PREFILL_SECONDS_MAXIMUM) if found else 0.0


def _repeatable(error: InstanceLost, slot: Slot, function: FunctionRecord) -> bool:
    """Whether a lost request may be sent to another instance.

    It may if it never left whole, or if the function runs no code of the user's but for a model,
    or did not serve yet: then nothing can have come of it.
    """
    never_served = not slot.target.serving and function.code_digest is None
    return not error.details["request_sent"] or never_served or resumable(function)


def _events_of(log: StreamLog | None, response: UpstreamResponse) -> Events | None:
    if not _is_event_stream(response):
        return None
    return EventRelay() if log is None else LoggedEvents(log)


def _last_words(
    surface: Surface, response: UpstreamResponse, *, is_events: bool
) -> LastWords | None:
    """What can still be said at the end of an answer that is cut; nothing if its length is told."""
    if is_events:
        return lambda error: error_event(surface.stream_error(error))
    return None if response.header("Content-Length") else plain_words


def _is_event_stream(response: UpstreamResponse) -> bool:
    kind = response.header("Content-Type").partition(";")[0].strip().lower()
    framed = response.header("Content-Encoding") or response.header("Content-Length")
    return kind == "text/event-stream" and not framed
