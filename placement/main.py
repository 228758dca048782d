"""`python -m stoker.placement.main`: one placement process. Only wiring."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import time
import uuid
from collections.abc import Callable
from types import FrameType

import structlog
import uvicorn

from stoker.placement.controller import Controller
from stoker.placement.election import Election
from stoker.placement.errors import StokerError
from stoker.placement.records import LeaderRecord, encode
from stoker.placement.service import create_app
from stoker.placement.settings import Settings, bound_socket
from stoker.placement.stores import open_store
from stoker.placement.view import LEADER_PATH, View

EPOCH_PATH = "/placement/epoch"
DRAIN_SECONDS = 5


def main() -> None:
    """Serve until SIGTERM or SIGINT; exit status 1 and one sentence if the start fails."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _exit)
    try:
        settings = Settings.from_environment(os.environ)
        token = settings.cluster_token()
        bound = bound_socket(settings.bind_host, settings.bind_port)
        _configure_logging(settings.log_level)
        _serve(settings, token, bound)
    except StokerError as error:
        sys.exit(str(error))


def _serve(settings: Settings, token: str, bound: socket.socket) -> None:
    address = _address(bound)
    leader_id = f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}"
    store = open_store(settings.store_url, token)
    view = View(store)
    controller = Controller(
        *(store, view, leader_id, steady_clock(), settings.idle_bin_seconds),
        prefetches=settings.prefetches,
    )
    election = Election(
        store,
        LEADER_PATH,
        EPOCH_PATH,
        lambda epoch: encode(LeaderRecord(leader_id, address, epoch)),
        controller.on_elected,
        controller.on_lost,
    )
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(controller, token),
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=DRAIN_SECONDS,
        )
    )
    # Who reads of the leader's election may call at once: the socket listens before it is told.
    bound.listen(1024)
    controller.start()
    election.start()
    structlog.get_logger().info("placement_started", address=address, leader=leader_id)
    try:
        server.run(sockets=[bound])
    finally:
        election.close()
        controller.close()
        view.close()
        store.close()


def steady_clock() -> Callable[[], float]:
    """Seconds since the epoch, by the clock as it was set now: no later change of it is seen."""
    begun_at = time.time() - time.monotonic()
    return lambda: begun_at + time.monotonic()


def _address(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _configure_logging(level: str) -> None:
    number = logging.getLevelNamesMapping()[level.upper()]
    logging.basicConfig(level=max(number, logging.WARNING), stream=sys.stderr)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
    )


def _exit(number: int, _: FrameType | None) -> None:
    # The server stops on these signals by itself and raises them again when it is done.
    signal.signal(number, signal.SIG_IGN)
    sys.exit(0)


if __name__ == "__main__":
    main()
