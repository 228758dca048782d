"""`python -m stoker.gateway.main`: gunicorn with one ASGI worker. Only wiring."""

from __future__ import annotations

import logging
import os
import resource
import sys
from typing import Any

import structlog
from gunicorn.app.base import BaseApplication

from stoker.gateway.client_connection import connections_maximum
from stoker.gateway.settings import Settings
from stoker.gateway.worker import GatewayWorker
from stoker.placement.errors import StokerError

DRAIN_SECONDS = 30


class GatewayServer(BaseApplication):  # type: ignore[misc]
    """gunicorn, configured by our settings alone."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        super().__init__()

    def load_config(self) -> None:
        given = self._settings.listening_descriptor
        options: dict[str, Any] = {
            "bind": [self._settings.bind if given is None else f"fd://{given}"],
            # Slots and queues are counted in one process; more gateways are more machines.
            "workers": 1,
            "worker_class": GatewayWorker,
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
            "limit_request_line": 8190,
            "worker_connections": connections_maximum(),
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        from stoker.gateway.asgi import application

        return application


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
