"""The connections of one node: threads that fetch parts of every load, in the order given."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from stoker.native import Cancelled
from stoker.runtime.checkpoint.fetch_order import Part, PartSize, Queue, next_queue

CONNECTIONS = 8
# Below this rate a load waits for the wire, and writing to the disk beside it costs it nothing.
SLOW_WIRE_BYTES_PER_SECOND = 256e6


class Fetcher:
    """Runs at most `connections` fetches at a time, started when there is first need of them.

    Of those, at most half are for loads ahead of any call, for which nobody waits.
    """

    def __init__(self, connections: int = CONNECTIONS) -> None:
        self.connections = connections
        self._lock = threading.Lock()
        self._queued = threading.Condition(self._lock)
        self._settled = threading.Condition(self._lock)
        self._part_size = PartSize()
        self._fetches: set[Fetches] = set()
        self._threads: list[threading.Thread] = []
        self._closing = False

    def begin(
        self, deadline: float | None, fetch: Callable[[Part], None], *, ahead: bool = False
    ) -> Fetches:
        """A load of parts by `fetch`, which blocks; `deadline` is in seconds of time.monotonic."""
        fetches = Fetches(self, Queue(deadline, time.monotonic(), ahead=ahead), fetch)
        with self._lock:
            self._fetches.add(fetches)
            while len(self._threads) < self.connections:
                number = len(self._threads)
                thread = threading.Thread(target=self._work, name=f"fetch-{number}", daemon=True)
                self._threads.append(thread)
                thread.start()
        return fetches

    def wait_for_slack(self, seconds: float) -> bool:
        """Whether within `seconds` there is no fetch that a write to the disk would slow down."""
        with self._lock:
            return self._settled.wait_for(self._has_slack, seconds)

    def _has_slack(self) -> bool:
        running = sum(fetches.running for fetches in self._fetches)
        return running * self._part_size.bytes_per_second < SLOW_WIRE_BYTES_PER_SECOND

    def close(self) -> None:
        """Drop what is queued and wait for what runs."""
        with self._lock:
            self._closing = True
            for fetches in self._fetches:
                fetches.stop(Cancelled("The node is closing."))
            self._queued.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (taken := self._take()) is not None:
            fetches, part = taken
            begun = time.monotonic()
            failure: BaseException | None = None
            try:
                fetches.fetch(part)
            except BaseException as error:  # noqa: BLE001 (whoever waits for the load raises it)
                failure = error
            now = time.monotonic()
            with self._lock:
                if failure is None:
                    self._part_size.record(part.end - part.begin, now - begun)
                else:
                    fetches.stop(failure)
                fetches.ended(part, now)
                self._settled.notify_all()
                self._queued.notify()

    def _take(self) -> tuple[Fetches, Part] | None:
        """The next part, waited for; None when the node closes."""
        with self._lock:
            while not self._closing:
                now = time.monotonic()
                ahead = sum(fetches.running for fetches in self._fetches if fetches.queue.ahead)
                full = ahead >= max(1, self.connections // 2)
                by_queue = {
                    fetches.queue: fetches
                    for fetches in self._fetches
                    if not (full and fetches.queue.ahead)
                }
                queue = next_queue(by_queue.keys(), now)
                if queue is not None:
                    fetches = by_queue[queue]
                    fetches.started(now)
                    return fetches, queue.take(self._part_size.bytes, now)
                self._queued.wait()
        return None

    def add(self, fetches: Fetches, ordinal: int, byte_count: int) -> None:
        with self._lock:
            if fetches.failure is None:
                fetches.queue.add(ordinal, byte_count)
                self._queued.notify(self.connections)

    def hasten(self, fetches: Fetches, deadline: float | None) -> None:
        with self._lock:
            fetches.queue.hasten(deadline)
            self._queued.notify_all()

    def cancel(self, fetches: Fetches) -> None:
        with self._lock:
            fetches.stop(Cancelled("The load was cancelled."))
            self._settled.notify_all()

    def wait(self, fetches: Fetches) -> None:
        with self._lock:
            while fetches.running or fetches.queue.bytes:
                self._settled.wait()
            self._fetches.discard(fetches)
        if fetches.failure is not None:
            raise fetches.failure


class Fetches:
    """The fetches of one load. What has no docstring is called with the fetcher's lock held."""

    def __init__(self, fetcher: Fetcher, queue: Queue, fetch: Callable[[Part], None]) -> None:
        self.queue = queue
        self.fetch = fetch
        self.running = 0
        self.failure: BaseException | None = None
        self.bytes = 0
        self.seconds = 0.0  # in which at least one fetch of this load ran
        self._began = 0.0
        self._fetcher = fetcher

    def add(self, ordinal: int, byte_count: int) -> None:
        """Queue a chunk; allowed before `wait`, and in a fetch."""
        self._fetcher.add(self, ordinal, byte_count)

    def hasten(self, deadline: float | None) -> None:
        """Somebody waits: what is still queued has this deadline, if it is earlier."""
        self._fetcher.hasten(self, deadline)

    def cancel(self) -> None:
        """Drop what is queued; `wait` raises Cancelled once what runs has ended."""
        self._fetcher.cancel(self)

    def wait(self) -> None:
        """Return when every chunk is fetched, or raise the first failure; nothing runs then."""
        self._fetcher.wait(self)

    def stop(self, failure: BaseException) -> None:
        if self.failure is None:
            self.failure = failure
        self.queue.clear()

    def started(self, now: float) -> None:
        if not self.running:
            self._began = now
        self.running += 1

    def ended(self, part: Part, now: float) -> None:
        self.running -= 1
        self.bytes += part.end - part.begin
        if not self.running:
            self.seconds += now - self._began
