"""The running gateway: everything that lives as long as one worker process, and its routes."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any, TypeVar

import structlog
from a2wsgi import WSGIMiddleware

from stoker.gateway.access import is_open, unauthorized
from stoker.gateway.agent_client import RESOLVE_SECONDS, AgentClient
from stoker.gateway.app import ControlPlane, create_app
from stoker.gateway.audit import AuditLog
from stoker.gateway.auth import Credentials
from stoker.gateway.builder import BUILD_BYTES_MAXIMUM
from stoker.gateway.exchange import (
    BufferBudget,
    ClientGone,
    Reply,
    Request,
    Send,
    check_method,
    error_answer,
)
from stoker.gateway.functions import Functions
from stoker.gateway.hosts import Hosts
from stoker.gateway.internal import open_session
from stoker.gateway.invoke import Invoker
from stoker.gateway.jobs.service import Jobs
from stoker.gateway.limits import Limiter
from stoker.gateway.logs import SystemLogs
from stoker.gateway.metrics import Metrics
from stoker.gateway.namespaces import Namespaces
from stoker.gateway.oip import Oip
from stoker.gateway.openai import OpenAi
from stoker.gateway.placement_client import PlacementClient
from stoker.gateway.router import Router
from stoker.gateway.secrets import Secrets
from stoker.gateway.settings import MIB, Settings
from stoker.gateway.ssrf import Guard
from stoker.gateway.tokens import Tokens
from stoker.gateway.upstream import Upstream
from stoker.gateway.waiting import Stages
from stoker.placement.bundles import Bundles
from stoker.placement.errors import DeadlineExceeded, StokerError
from stoker.placement.records import CheckpointRef, EvictRequest, NodeRecord, ResolveRequest
from stoker.placement.store import Store, StoreState
from stoker.placement.view import View
from stoker.placement.why import WhyAnswer

CONTROL_THREADS = 8
# What is answered outside Flask, by how its path begins or by the path itself.
PREFIXES = ("/function/", "/async-function/", "/system/async", "/v1/", "/openai/v1/", "/v2")
PATHS = ("/healthz", "/system/logs")
T = TypeVar("T")
Route = Callable[[Request, Reply], Awaitable[None]]

_log = structlog.get_logger()


class Gateway:
    """To be made inside the worker's event loop; owns its store session and connections."""

    def __init__(self, settings: Settings, store: Store, view: View, bundles: Bundles) -> None:
        token = settings.cluster_token()
        credentials = Credentials(settings.password(), lambda: view.snapshot().tokens)
        gateway_id = f"gateway-{uuid.uuid4().hex[:12]}"
        self._loop = asyncio.get_running_loop()
        self._store, self._view, self._credentials = store, view, credentials
        self._session = open_session()
        self._agents = AgentClient(self._session, token)
        self._store_state = StoreState.CONNECTED
        store.on_state(self._note_store_state)
        self._placement = PlacementClient(
            self._session,
            lambda: view.snapshot().leader,
            lambda: self._store_state is StoreState.CONNECTED,
            gateway_id,
            token,
        )
        self._upstream = Upstream(settings.response_head_seconds)
        metrics = Metrics()
        self._router = Router(view.snapshot, self._placement, settings.queue_seconds)
        self._invoker = Invoker(
            view.snapshot,
            self._router,
            self._upstream,
            metrics,
            credentials,
            token,
            settings.body_bytes_maximum,
            settings.function_token_wanted,
            Limiter(settings.queue_seconds),
        )
        self._openai = OpenAi(
            view.snapshot,
            self._invoker,
            Stages(view.snapshot, self._agents),
            credentials,
            settings.body_bytes_maximum,
        )
        functions = Functions(store, view, self._resolve, self._evict, metrics, bundles)
        self._oip = Oip(
            view.snapshot, self._invoker, functions, credentials, settings.body_bytes_maximum
        )
        self._hosts = Hosts(settings.domain) if settings.domain else None
        self._logs = SystemLogs(view.snapshot, self._agents, credentials)
        self._budget = BufferBudget(settings.buffered_bytes_maximum)
        audit = AuditLog(settings.audit_file)
        self._jobs = Jobs(
            settings.jobs_folder,
            settings.jobs_maximum,
            self._invoker,
            Guard(settings.private_destinations),
            credentials,
            self._budget,
            metrics.registry,
            audit,
            settings.body_bytes_maximum,
        )
        self._routes = self._route_table()
        secrets = Secrets(store, token, functions.renew)
        self._control = self._control_plane(functions, secrets, metrics, bundles, audit)
        self._refresh_due = False
        view.on_change(self._on_change)
        self._report = asyncio.create_task(self._placement.report_forever(self._tick))

    def _control_plane(
        self,
        functions: Functions,
        secrets: Secrets,
        metrics: Metrics,
        bundles: Bundles,
        audit: AuditLog,
    ) -> WSGIMiddleware:
        view = self._view
        control = ControlPlane(
            functions,
            Namespaces(self._store),
            secrets,
            view.snapshot,
            self._router.in_flight,
            metrics,
            self._credentials,
            bundles,
            self._store,
            view,
            self._why,
            self._measure,
            Tokens(self._store, lambda: view.snapshot().tokens, view.apply),
            audit,
        )
        return WSGIMiddleware(create_app(control), workers=CONTROL_THREADS)

    async def close(self) -> None:
        """Stop reporting and close every connection; requests must have ended."""
        await self._jobs.close()
        self._report.cancel()
        self._router.close()
        self._control.executor.shutdown(wait=False, cancel_futures=True)
        self._upstream.close()
        await self._session.close()
        self._view.close()
        await asyncio.to_thread(self._store.close)

    async def serve(self, scope: MutableMapping[str, Any], receive: Any, send: Send) -> None:
        """Answer one HTTP request."""
        request, reply = Request(scope, receive, self._budget), Reply(send)
        try:
            await self._route(request, reply, send)
        except ClientGone:
            return
        except StokerError as error:
            if not reply.status:
                await reply.whole(*error_answer(error, request.header(b"accept")))
        finally:
            request.release()
        if reply.finished:
            await request.discard()

    def _route_table(self) -> tuple[tuple[str, Route], ...]:
        """Who answers below each of PREFIXES."""
        jobs, openai = self._jobs.routes.route, self._openai.route
        routes = (self._invoker.function_route, jobs, jobs, openai, openai, self._oip.route)
        return tuple(zip(PREFIXES, routes, strict=True))

    async def _route(self, request: Request, reply: Reply, send: Send) -> None:
        path = request.path
        hosted = self._hosts.function_of(request.header(b"host")) if self._hosts else None
        if hosted is not None:
            await self._invoker.function_route(request, reply, hosted)
            return
        for prefix, route in self._routes:
            if path.startswith(prefix):
                await route(request, reply)
                return
        if path == "/healthz":
            check_method(request, "GET", "HEAD")
            await reply.whole(200, [(b"content-type", b"text/plain")], b"OK")
        elif path == "/system/logs":
            await self._logs.route(request, reply)
        else:
            await self._control_route(request, send)

    async def _control_route(self, request: Request, send: Send) -> None:
        """Hand the whole request to Flask: its threads never wait for a slow client.

        Nothing is read of who is not known, but the build whose signature covers its body.
        """
        signed = request.path == "/build" and request.header(b"x-build-signature")
        known = self._credentials.caller(request.header(b"authorization"))
        if known is None and not signed and not is_open(request.method, request.path):
            raise unauthorized()
        body = await request.read(BUILD_BYTES_MAXIMUM if request.path == "/build" else MIB)
        kept = [h for h in request.headers if h[0] not in (b"content-length", b"transfer-encoding")]
        length = (b"content-length", str(len(body)).encode())

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        await self._control({**request.scope, "headers": [*kept, length]}, receive, send)

    def _note_store_state(self, state: StoreState) -> None:
        _log.info("store_state", state=state.value)
        self._store_state = state

    def _tick(self) -> Any:
        """The demand now. Its second is also when queues notice that time has passed."""
        self._router.refresh()
        return self._router.demand()

    def _on_change(self) -> None:
        """The view changed; many changes at once cause one look at the queues."""
        if not self._refresh_due and not self._loop.is_closed():
            self._refresh_due = True
            self._loop.call_soon_threadsafe(self._refresh)

    def _refresh(self) -> None:
        self._refresh_due = False
        self._placement.follow()
        self._router.refresh()

    def _resolve(self, uri: str, adapter: bool) -> CheckpointRef:
        """Pin a checkpoint, from one of Flask's threads."""
        asked = ResolveRequest(uri, adapter)
        return self._wait_for(self._agents.resolve(self._nodes(), asked), f"No node read {uri}")

    def _evict(self, asked: EvictRequest) -> None:
        """Have every node drop a checkpoint, from one of Flask's threads."""
        evicting = self._agents.evict(self._nodes(), asked)
        self._wait_for(evicting, f"Not every node dropped checkpoint {asked.digest}")

    def _why(self, name: str) -> WhyAnswer:
        """What placement decided for a call or an instance, from one of Flask's threads."""
        return self._wait_for(self._placement.why(name), "Placement did not say why")

    def _measure(self) -> None:
        """Bring what the metrics tell of jobs up to date, from one of Flask's threads."""
        self._wait_for(self._jobs.measure(), "The queue of jobs did not answer")

    def _nodes(self) -> list[NodeRecord]:
        return list(self._view.snapshot().nodes.values())

    def _wait_for(self, work: Coroutine[Any, Any, T], failure: str) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(RESOLVE_SECONDS + 5)
        except TimeoutError as error:
            future.cancel()
            raise DeadlineExceeded(f"{failure} within {RESOLVE_SECONDS:g} s.") from error
