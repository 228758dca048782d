"""A thread that runs what it is given, in order, one at a time."""

from __future__ import annotations

import concurrent.futures
import heapq
import itertools
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import structlog

from stoker.placement.errors import CoordinationLost

CLOSE_SECONDS_MAX = 10.0

_T = TypeVar("_T")
_log = structlog.get_logger()


def ask(
    submit: Callable[[Callable[[], object]], object],
    function: Callable[[], _T],
    timeout_seconds: float,
    thread_name: str,
) -> _T:
    """Have another thread run `function`, by `submit`; return what it returns, raise its error."""
    future: concurrent.futures.Future[_T] = concurrent.futures.Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # noqa: BLE001 - raised again in the caller
            future.set_exception(error)

    submit(run)
    try:
        return future.result(timeout_seconds)
    except concurrent.futures.TimeoutError:
        raise CoordinationLost(
            f"Expected the thread {thread_name} to answer within {timeout_seconds:g} s, "
            "found it busy.",
            "Return quickly from callbacks and hold no lock that they need.",
        ) from None


class SerialThread:
    """Runs functions in the order of their due times, in one daemon thread."""

    def __init__(self, name: str) -> None:
        self._work: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, function: Callable[[], object], *, delay_seconds: float = 0.0) -> None:
        """Run `function` later in the thread; nothing happens after `close`."""
        with self._changed:
            due = time.monotonic() + delay_seconds
            heapq.heappush(self._work, (due, next(self._numbers), function))
            self._changed.notify()

    def call(self, function: Callable[[], _T], *, timeout_seconds: float) -> _T:
        """Run `function` in the thread (at once, if this is the thread) and return its result.

        CoordinationLost if it has not ended in time; it may still run.
        """
        if threading.current_thread() is self._thread:
            return function()
        return ask(self.submit, function, timeout_seconds, self._thread.name)

    def finish(self) -> None:
        """End after what was submitted and is due; wait for it, if this is another thread."""
        self.submit(self.close)
        if threading.current_thread() is not self._thread:
            self._thread.join(CLOSE_SECONDS_MAX)

    def close(self) -> None:
        """Drop what is left and, if this is another thread, wait for what runs now."""
        with self._changed:
            self._closed = True
            self._work.clear()
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join(CLOSE_SECONDS_MAX)

    def _run(self) -> None:
        while (function := self._take()) is not None:
            try:
                function()
            except Exception:  # noqa: BLE001 - the thread outlives a bug in one piece of work
                _log.exception("serial_work_failed", thread=self._thread.name)

    def _take(self) -> Callable[[], object] | None:
        with self._changed:
            while not self._closed:
                wait_seconds = self._work[0][0] - time.monotonic() if self._work else None
                if wait_seconds is not None and wait_seconds <= 0:
                    return heapq.heappop(self._work)[2]
                self._changed.wait(wait_seconds)
            return None
