"""How long a request may take: `exec_timeout` of the function's environment, as OpenFaaS names it,
and the caller's X-Timeout, which can only shorten it. A stream counts until its head.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from stoker.placement.errors import DeadlineExceeded, StartFailed
from stoker.placement.spec_fields import duration_seconds
from stoker.runtime.handlers.http import Handler, Request, Response


def exec_seconds(environment: Mapping[str, str], default: float | None) -> float | None:
    """What `exec_timeout` says, None for no limit; StartFailed if it is no duration."""
    stated = environment.get("exec_timeout")
    if stated is None:
        return default
    seconds = duration_seconds(stated)
    if seconds is None:
        raise StartFailed(
            f"Expected seconds or a duration such as 1m30s in exec_timeout, found {stated!r:.40}.",
            "Correct the function's environment.",
        )
    return seconds or None


def limit_seconds(request: Request, exec_limit: float | None) -> float | None:
    """The lesser of the function's limit and the caller's, None if there is neither."""
    given = (exec_limit, duration_seconds(request.header("x-timeout")))
    return min((value for value in given if value), default=None)


def limited(handler: Handler, environment: Mapping[str, str]) -> Handler:
    """`handler`, which answers in time or is ended with DeadlineExceeded."""
    exec_limit = exec_seconds(environment, None)

    async def handle(request: Request) -> Response:
        limit = limit_seconds(request, exec_limit)
        if limit is None:
            return await handler(request)
        try:
            async with asyncio.timeout(limit) as deadline:
                return await handler(request)
        except TimeoutError:
            if not deadline.expired():
                raise
            raise DeadlineExceeded(
                f"Expected an answer within {limit:g} s, found none.",
                "Ask for less, or raise exec_timeout or X-Timeout.",
            ) from None

    return handle
