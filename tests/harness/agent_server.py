"""The agent's HTTP over a checkpoint cache, in a thread of this process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.waiting import eventually
from stoker.runtime.agent_http import Server, application
from stoker.runtime.checkpoint.tiers import CheckpointCache
from stoker.runtime.function_logs import FunctionLogs
from stoker.runtime.spare_sockets import address_of, listen


@contextmanager
def serving(cache: CheckpointCache, token: str, logs_dir: Path) -> Iterator[str]:
    """The address at which `cache` lends its chunks."""
    listening = listen("127.0.0.1", 0)
    app = application(token, cache, FunctionLogs(logs_dir), dict)
    server = Server(app)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])))
    thread.start()
    try:
        eventually(lambda: server.started)
        yield address_of(listening)
    finally:
        server.should_exit = True
        thread.join()
