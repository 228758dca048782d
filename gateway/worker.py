"""gunicorn's ASGI worker, leaving so that no client notices.

    SIGTERM ──> accept no more ──> each answer says `Connection: close` ──> all have left ──> end

gunicorn's own closes a connection after an answer whose head did not announce it, and a client
that sends its next request meanwhile loses it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from typing import Any

from gunicorn.workers.gasgi import ASGIWorker

from stoker.gateway.client_connection import BoundedConnection

# Of the time that the master grants: for the connections that are cut, and the store's session.
CLOSE_SECONDS = 2.0


class GatewayWorker(ASGIWorker):  # type: ignore[misc]
    """`leaving` is set when the process is to end, `emptied` once no client is connected then."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.leaving = False
        self.emptied: asyncio.Event | None = None
        self._leave_task: asyncio.Task[None] | None = None

    def _setup_event_loop(self) -> None:
        super()._setup_event_loop()
        listen = self.loop.create_server

        async def create_server(_: Any, **options: Any) -> Any:
            # asyncio's own backlog is 100. Over that the kernel drops connections, and a dropped
            # one costs its client a whole second.
            make = functools.partial(BoundedConnection, self)
            return await listen(make, backlog=self.cfg.backlog, **options)

        self.loop.create_server = create_server

    def handle_exit_signal(self) -> None:
        if not self.leaving:
            self.leaving = True
            self._leave_task = self.loop.create_task(self._leave())

    async def _leave(self) -> None:
        for server in self.servers:
            server.close()
        self.emptied = asyncio.Event()
        if self.nr_conns:
            seconds = self.cfg.graceful_timeout - CLOSE_SECONDS
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.emptied.wait(), seconds)
        # Whoever is still connected had his time.
        self.cfg.set("graceful_timeout", 0)
        self.alive = False
