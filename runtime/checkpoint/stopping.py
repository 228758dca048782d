"""Ending a load from outside, and loads that an event loop can await.

A task that is cancelled stops its load: reads in flight end (an S3 range that is being received
is finished or times out), no other begins, and only then is the cancellation raised.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Stop:
    """Whether the loads of one call are to end; `stop` may come from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stopped = False
        self._cancels: list[Callable[[], None]] = []

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            cancels = list(self._cancels)
        for cancel in cancels:
            cancel()

    @contextmanager
    def stops(self, cancel: Callable[[], None]) -> Iterator[None]:
        """Within the block, `stop` calls `cancel`; at once if it came before."""
        with self._lock:
            self._cancels.append(cancel)
            stopped = self._stopped
        try:
            if stopped:
                cancel()
            yield
        finally:
            with self._lock:
                self._cancels.remove(cancel)


current_stop: ContextVar[Stop] = ContextVar("current_stop")


def asynchronous(function: Callable[_P, _T]) -> Callable[_P, Awaitable[_T]]:
    """`function` in a thread of its own, whose loads end when the awaiting task is cancelled."""

    @functools.wraps(function)
    async def wrapper(*arguments: _P.args, **options: _P.kwargs) -> _T:
        stop, context = Stop(), copy_context()
        context.run(current_stop.set, stop)
        call = functools.partial(context.run, function, *arguments, **options)
        thread = ThreadPoolExecutor(1, "stoker-async")
        try:
            running = asyncio.get_running_loop().run_in_executor(thread, call)
        finally:
            thread.shutdown(wait=False)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            stop.stop()
            # Whatever the load still raises or returns has nobody to go to.
            running.add_done_callback(lambda done: done.cancelled() or done.exception())
            await asyncio.wait([running])
            raise

    wrapper.__name__ = wrapper.__qualname__ = f"{function.__name__}_async"
    wrapper.__doc__ = (
        f"`{function.__name__}` without blocking the event loop.\n\n"
        "Cancelling the task that awaits it stops the load. `on_progress` is called from the\n"
        "loading thread."
    )
    return wrapper
