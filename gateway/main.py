"""`python -m stoker.gateway.main`: gunicorn with one ASGI worker. Only wiring."""

from __future__ import annotations

import functools
import logging
import os
import resource
import sys
from typing import Any

import structlog
from gunicorn.app.base import BaseApplication

from stoker.gateway.settings import Settings
from stoker.placement.errors import StokerError

DRAIN_SECONDS = 30


class GatewayServer(BaseApplication):  # type: ignore[misc]
    """gunicorn, configured by our settings alone."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        super().__init__()

    def load_config(self) -> None:
        options: dict[str, Any] = {
            "bind": [self._settings.bind],
            # Slots and queues are counted in one process; more gateways are more machines.
            "workers": 1,
            "worker_class": "asgi",
            "asgi_lifespan": "on",
            "asgi_disconnect_grace_period": 5,
            "control_socket_disable": True,
            "graceful_timeout": DRAIN_SECONDS,
            "timeout": 60,
            # An idle client holds up the end of the process for so long.
            "keepalive": 5,
            "proc_name": "stoker-gateway",
            "loglevel": self._settings.log_level,
            "errorlog": "-",
            "post_worker_init": _accept_bursts,
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        from stoker.gateway.asgi import application

        return application


def _accept_bursts(worker: Any) -> None:
    """Keep gunicorn's own backlog: its ASGI worker listens anew with asyncio's 100.

    Over that the kernel drops connections, and a dropped one costs its client a whole second.
    """
    loop = worker.loop
    loop.create_server = functools.partial(loop.create_server, backlog=worker.cfg.backlog)


def main() -> None:
    """Serve until SIGTERM or SIGINT; exit status 1 and one sentence if the start fails."""
    try:
        settings = Settings.from_environment(os.environ)
        settings.prepare_secrets()
    except StokerError as error:
        sys.exit(str(error))
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[settings.log_level.upper()]
        ),
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    # A stream takes two descriptors, and the usual soft limit is for 500 of them.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    GatewayServer(settings).run()


if __name__ == "__main__":
    main()
