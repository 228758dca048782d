"""How user code is called: never in the way of other requests, and never the worker's end."""

from __future__ import annotations

import asyncio
import contextvars
import resource
import sys
import threading
import traceback
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from stoker.placement.errors import FunctionError, StokerError

_END = object()


def thread_pool(concurrency: int) -> ThreadPoolExecutor:
    """Threads for a function's synchronous code: as many as it may have requests in flight."""
    return ThreadPoolExecutor(concurrency, thread_name_prefix="handle")


class Steps:
    """One request's calls into synchronous code: one after the other, in one context.

    The threads may differ from step to step; what user code keeps in context variables stays.
    """

    def __init__(self, threads: ThreadPoolExecutor) -> None:
        self._threads = threads
        self._context = contextvars.copy_context()
        # Held for each step: a client may leave while one runs, and the last step waits for it.
        self._running = threading.Lock()

    async def run(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """What `call` returns, run in a thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._step, call, arguments)

    async def iterate(
        self, pieces: Iterator[Any], close: Callable[[], object] | None
    ) -> AsyncGenerator[Any, None]:
        """The items of `pieces`, each drawn in a thread; `close` is called at any end."""
        try:
            while (piece := await self.run(next, pieces, _END)) is not _END:
                yield piece
        finally:
            if close is not None:
                await self.run(close)

    def _step(self, call: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        with self._running:
            try:
                return self._context.run(call, *arguments)
            except StopIteration as error:  # it cannot cross a future
                raise RuntimeError("the function raised StopIteration") from error


@contextmanager
def contained() -> Iterator[None]:
    """Turns whatever user code raises, SystemExit too, into the function's 500."""
    try:
        yield
    except (StokerError, GeneratorExit):
        raise
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise failed(error) from error  # user code cancelled something of its own
    except BaseException as error:
        raise failed(error) from error


def failed(error: BaseException) -> FunctionError:
    """The error for the client, after the traceback went to the function's log."""
    traceback.print_exception(error, file=sys.stderr)
    if isinstance(error, MemoryError):
        return _out_of_memory(error)
    return FunctionError(
        f"Expected the function to return a response, found {type(error).__name__}.",
        "The function's log has the traceback.",
    )


def _out_of_memory(error: MemoryError) -> FunctionError:
    """Some libraries say how much they asked for; Python itself does not."""
    limit = resource.getrlimit(resource.RLIMIT_DATA)[0]
    held = f"; {limit:,} bytes may be mapped in all" if limit != resource.RLIM_INFINITY else ""
    found = f"Expected memory for the function, found: {error or 'none'}{held}."
    sys.stderr.write(f"{found}\n")
    return FunctionError(found, "Raise limits.memory, or let the function take less at once.")


def contained_task(
    loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any
) -> asyncio.Task[Any]:
    """A task factory: SystemExit in a task of the user's would end the loop, and so the worker."""
    return asyncio.Task(_without_exit(coroutine), loop=loop, **options)


async def _without_exit(coroutine: Coroutine[Any, Any, Any]) -> Any:
    try:
        return await coroutine
    except (SystemExit, KeyboardInterrupt) as error:
        raise failed(error) from error
