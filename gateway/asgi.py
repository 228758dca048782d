"""The ASGI application that gunicorn's worker runs: `stoker.gateway.asgi:application`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import MutableMapping
from typing import Any

import structlog

from stoker.gateway.exchange import Receive, Send
from stoker.gateway.gateway import Gateway
from stoker.gateway.settings import Settings
from stoker.placement.bundles import open_bundles
from stoker.placement.errors import StokerError
from stoker.placement.stores import open_store
from stoker.placement.view import View

_log = structlog.get_logger()


class Application:
    """Opens the gateway when the worker starts, never before the fork, and closes it at the end."""

    def __init__(self) -> None:
        self._gateway: Gateway | None = None

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            assert self._gateway is not None
            await self._gateway.serve(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        else:
            await send({"type": "websocket.close", "code": 1003})

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            settings = Settings.from_environment(os.environ)
            settings.prepare_secrets()
            store = await asyncio.to_thread(
                open_store, settings.store_url, settings.cluster_token()
            )
            view = await asyncio.to_thread(View, store)
            bundles = await asyncio.to_thread(
                open_bundles, settings.bundles_url, settings.store_url, store
            )
            self._gateway = Gateway(settings, store, view, bundles)
        except StokerError as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        _log.info("gateway_started", bind=settings.bind)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._gateway.close()
        _log.info("gateway_stopped")
        await send({"type": "lifespan.shutdown.complete"})


application = Application()
