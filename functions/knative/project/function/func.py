"""A Knative function as `func create -l python` lays it out, unchanged."""

from __future__ import annotations

import logging
from typing import Any

_log = logging.getLogger(__name__)


def new() -> Function:
    return Function()


class Function:
    def __init__(self) -> None:
        self.count = 0

    async def handle(self, scope: Any, receive: Any, send: Any) -> None:
        self.count += 1
        _log.info("call %d of %s", self.count, scope["path"])
        headers = [[b"content-type", b"text/plain"]]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        body = f"{self.count} {scope['method']} {scope['path']}".encode()
        await send({"type": "http.response.body", "body": body})

    def start(self, cfg: dict[str, str]) -> None:
        _log.info("%s starts", cfg["K_SERVICE"])

    def stop(self) -> None:
        _log.info("stopped after %d calls", self.count)

    def alive(self) -> tuple[bool, str]:
        return True, "alive"

    def ready(self) -> tuple[bool, str]:
        return True, "ready"
