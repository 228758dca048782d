"""/async-function/* and /system/async/*: what a client sees of the queue.

POST   /async-function/<name>[.<namespace>][/path]   202 once the job is on the disk
GET    /async-function/<call-id>                     what a callback would bring; 202 until then
DELETE /async-function/<call-id>                     202: cancelled, or about to be
GET    /system/async[?state=&function=&limit=]       jobs, the newest first
GET    /system/async/<call-id>                       one job and its callback
POST   /system/async/<call-id>/retry[?queue=]        202: a dead job waits again
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable
from typing import Any
from urllib.parse import parse_qs, unquote

import orjson

from stoker.gateway.access import check_control, scope_in_words, unauthorized
from stoker.gateway.audit import AuditLog
from stoker.gateway.auth import Credentials
from stoker.gateway.exchange import ClientGone, Headers, Reply, Request, check_method, error_answer
from stoker.gateway.headers import call_id_of
from stoker.gateway.invoke import Invoker
from stoker.gateway.jobs.callbacks import outcome_headers
from stoker.gateway.jobs.invocations import CALLBACK_QUEUE, INVOKE_QUEUE, invocation_job
from stoker.gateway.jobs.metrics import JobMetrics
from stoker.gateway.jobs.queue import JobQueue
from stoker.gateway.jobs.records import ENDED, STATES, JobStatus
from stoker.gateway.jobs.store import QueueRunner
from stoker.gateway.ssrf import Guard
from stoker.placement.errors import (
    BadRequest,
    Conflict,
    Forbidden,
    NotFound,
    StokerError,
)
from stoker.placement.names import DEFAULT_NAMESPACE
from stoker.placement.token_record import TokenRecord

LISTED_DEFAULT = 100
LISTED_MAXIMUM = 1000
_FUNCTION = re.compile(r"/async-function/([-a-zA-Z_0-9.]+)(/.*)?", re.DOTALL)
_JSON = (b"content-type", b"application/json")
_SYSTEM = re.compile(r"/system/async(?:/([^/]+)(/retry)?)?")


class AsyncRoutes:
    def __init__(
        self,
        store: QueueRunner,
        invoker: Invoker,
        guard: Guard,
        credentials: Credentials,
        metrics: JobMetrics,
        audit: AuditLog,
        body_bytes_maximum: int,
    ) -> None:
        self._store = store
        self._invoker = invoker
        self._guard = guard
        self._credentials = credentials
        self._metrics = metrics
        self._audit = audit
        self._body_bytes_maximum = body_bytes_maximum

    async def route(self, request: Request, reply: Reply) -> None:
        """Answer one request to one of our paths."""
        try:
            if request.path.startswith("/async-function/"):
                await self._function_route(request, reply)
            else:
                await self._system_route(request, reply)
        except ClientGone:
            return
        except StokerError as error:
            status, headers, body = error_answer(error, request.header(b"accept"))
            await reply.whole(status, headers, body)

    async def _function_route(self, request: Request, reply: Reply) -> None:
        if request.method == "POST":
            await self._accept(request, reply)
            return
        below = "/" in request.path.removeprefix("/async-function/")
        check_method(request, "POST", *(() if below else ("GET", "HEAD", "DELETE")))
        call_id = _call_id(request.path.removeprefix("/async-function/"))
        caller = self._caller(request)
        if request.method == "DELETE":
            await self._audited(request, caller, self._cancel(caller, call_id))
            await reply.whole(202, [(b"x-call-id", call_id.encode())], b"")
        else:
            await self._check_scope(caller, call_id)
            await self._result(call_id, reply)

    async def _cancel(self, caller: TokenRecord, call_id: str) -> None:
        await self._check_scope(caller, call_id)
        await self._store.ask(lambda queue: queue.cancel(INVOKE_QUEUE, call_id, time.time()))

    async def _accept(self, request: Request, reply: Reply) -> None:
        call_id, start_nanoseconds = call_id_of(request), time.time_ns()
        said: Headers = [
            (b"x-call-id", call_id.encode()),
            (b"x-start-time", str(start_nanoseconds).encode()),
        ]
        try:
            matched = _FUNCTION.fullmatch(request.path)
            name, path = (matched[1], matched[2] or "/") if matched else ("", "/")
            function = self._invoker.find(name)
            self._invoker.admit(request, function, token_wanted=False)
            callback_url = request.header(b"x-callback-url").strip()
            if callback_url:
                self._guard.check(callback_url)
            await request.read(self._body_bytes_maximum)
            added = await self._store.ask(
                lambda queue: queue.accept(
                    invocation_job(
                        request,
                        call_id,
                        function.key,
                        name,
                        path,
                        callback_url,
                        self._credentials.is_ours,
                    ),
                    time.time(),
                )
            )
        except StokerError as error:
            status, headers, body = error_answer(error, request.header(b"accept"))
            await reply.whole(status, [*headers, *said], body)
            return
        if added:
            self._metrics.accepted()
        await reply.whole(202, said, b"")

    async def _result(self, call_id: str, reply: Reply) -> None:
        def read(queue: JobQueue) -> tuple[JobStatus, bytes]:
            found = queue.status(INVOKE_QUEUE, call_id)
            wanted = found.state in ENDED
            return found, queue.body(INVOKE_QUEUE, call_id, "result") if wanted else b""

        found, result = await self._store.ask(read)
        if found.state not in ENDED:
            body = orjson.dumps(_wire(found))
            await reply.whole(202, [_JSON, (b"x-call-id", call_id.encode())], body)
            return
        if found.state == "cancelled":
            raise Conflict(f"Expected a result of {call_id!r:.140}, found that it was cancelled.")
        headers = [(n.encode("latin-1"), v.encode("latin-1")) for n, v in outcome_headers(found)]
        await reply.whole(200, headers, result)

    async def _system_route(self, request: Request, reply: Reply) -> None:
        caller = self._caller(request)
        check_control(caller, request.method, request.path, {}, b"")
        matched = _SYSTEM.fullmatch(request.path)
        if matched is None:
            raise NotFound(f"{request.method} {request.path:.80}: no such route.")
        name, retried = matched[1], matched[2]
        check_method(request, "POST" if retried else "GET")
        if name is None:
            await self._list(request, reply)
        elif retried:
            call_id, queue_name = _call_id(name), _one(request.query, "queue") or INVOKE_QUEUE
            again = self._store.ask(lambda queue: queue.retry(queue_name, call_id, time.time()))
            await self._audited(request, caller, again)
            await reply.whole(202, [(b"x-call-id", call_id.encode())], b"")
        else:
            await self._show(_call_id(name), reply)

    async def _show(self, call_id: str, reply: Reply) -> None:
        def read(queue: JobQueue) -> tuple[JobStatus, JobStatus | None]:
            found = queue.status(INVOKE_QUEUE, call_id)
            try:
                return found, queue.status(CALLBACK_QUEUE, call_id)
            except NotFound:
                return found, None

        found, callback = await self._store.ask(read)
        told = _wire(found) | {"callback": None if callback is None else _wire(callback)}
        await reply.whole(200, [_JSON], orjson.dumps(told))

    async def _list(self, request: Request, reply: Reply) -> None:
        state, key = _one(request.query, "state"), _one(request.query, "function")
        queue_name = _one(request.query, "queue") or INVOKE_QUEUE
        limit = _one(request.query, "limit") or str(LISTED_DEFAULT)
        known = state in ("", *STATES) and queue_name in (INVOKE_QUEUE, CALLBACK_QUEUE)
        if not known or not re.fullmatch(r"[0-9]{1,6}", limit, re.ASCII):
            raise BadRequest(
                f"Expected state ({', '.join(STATES)}), queue ({INVOKE_QUEUE}, {CALLBACK_QUEUE}) "
                f"and limit (a number), found {request.query!r:.200}.",
                "Correct the query.",
            )
        if key and "." not in key:
            key = f"{key}.{DEFAULT_NAMESPACE}"
        wanted = min(int(limit), LISTED_MAXIMUM)
        found = await self._store.ask(lambda queue: queue.list(queue_name, state, key, wanted))
        body = await asyncio.to_thread(orjson.dumps, [_wire(job) for job in found])
        await reply.whole(200, [_JSON], body)

    def _caller(self, request: Request) -> TokenRecord:
        caller = self._credentials.caller(request.header(b"authorization"))
        if caller is None:
            raise unauthorized()
        return caller

    async def _audited(
        self, request: Request, caller: TokenRecord, change: Awaitable[None]
    ) -> None:
        """Make the change, and note who asked for it and what came of it."""
        status = 202
        try:
            await change
        except StokerError as error:
            status = error.status
            raise
        finally:
            fields = {
                "token": caller.token_id,
                "peer": request.peer,
                "method": request.method,
                "path": request.path,
                "status": status,
            }
            await asyncio.to_thread(self._audit.note, fields)

    async def _check_scope(self, caller: TokenRecord, call_id: str) -> None:
        """Forbidden for who may not invoke the function of the job; NotFound if there is none."""
        found = await self._store.ask(lambda queue: queue.status(INVOKE_QUEUE, call_id))
        name, _, namespace = found.key.rpartition(".")
        if not caller.covers(namespace, name):
            raise Forbidden(
                f"Expected a token for {found.key}, found one for {scope_in_words(caller)}.",
                "Use another token.",
            )


def _wire(job: JobStatus) -> dict[str, Any]:
    """A job as JSON: times in seconds since the epoch, null for what has not been yet."""
    outcome = job.outcome
    return {
        "call_id": job.id,
        "queue": job.queue,
        "function" if job.queue == INVOKE_QUEUE else "host": job.key,
        "state": job.state,
        "runs": job.runs,
        "interruptions": job.interruptions,
        "created_at": job.created_at,
        "due_at": job.due_at,
        "started_at": job.started_at,
        "ended_at": job.ended_at,
        "body_bytes": job.body_bytes,
        "result_bytes": job.result_bytes,
        "status": None if outcome is None or not outcome.status else outcome.status,
        "duration_seconds": None if outcome is None else outcome.seconds,
        "error": None if outcome is None else outcome.error,
    }


def _call_id(segment: str) -> str:
    """The id in a path, where everything may be quoted."""
    return unquote(segment, encoding="latin-1")


def _one(query: str, name: str) -> str:
    return parse_qs(query).get(name, [""])[-1]
