"""The gateway's metrics. A label names a deployed function only, so their number is bounded."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from stoker.placement.view import Snapshot

_CALL_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_COLD_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 8, 13, 20, 40, 80, 160, 320)


class Metrics:
    """Counts from many threads; `function_name` is a function key, `code` an HTTP status."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        # A counter would be called `…_started_total`, which no dashboard asks for.
        self._started = Gauge(
            "gateway_function_invocation_started",
            "Invocations that began, all in all.",
            ["function_name"],
            registry=self.registry,
        )
        self._total = Counter(
            "gateway_function_invocation",
            "Invocations that ended; code 499 means that the client left.",
            ["function_name", "code"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "gateway_functions_seconds",
            "From the arrival of a request to the end of its response.",
            ["function_name", "code"],
            buckets=_CALL_BUCKETS,
            registry=self.registry,
        )
        self._cold_seconds = Histogram(
            "gateway_cold_start_seconds",
            "From arrival to the response's first byte, of requests whose instance still started.",
            ["function_name"],
            buckets=_COLD_BUCKETS,
            registry=self.registry,
        )
        self._in_flight = self._gauge(
            "gateway_function_invocation_inflight", "Invocations that began and have not ended."
        )
        self._resumed = Counter(
            "gateway_streams_resumed",
            "Streams that went on at another instance after theirs was lost.",
            ["function_name"],
            registry=self.registry,
        )
        self._services = self._gauge(
            "gateway_service_count", "Instances that there are or will be."
        )
        self._ready = self._gauge("gateway_service_ready_count", "Instances that serve.")
        self._counts: dict[str, int] = {}
        # Looking a label up costs more than counting; those of one function go together.
        self._ended: dict[str, dict[int, tuple[Counter, Histogram]]] = {}
        self._running: dict[str, int] = {}

    def resumed(self, function_key: str) -> None:
        self._resumed.labels(function_key).inc()

    def begin(self, function_key: str) -> None:
        self._counts[function_key] = self._counts.get(function_key, 0) + 1
        self._running[function_key] = self._running.get(function_key, 0) + 1
        self._started.labels(function_key).inc()

    def end(self, function_key: str, code: int, seconds: float) -> None:
        codes = self._ended.setdefault(function_key, {})
        ended = codes.get(code)
        if ended is None:
            # It may have been forgotten meanwhile, and then is to be forgotten again.
            self._counts.setdefault(function_key, 0)
            labels = (function_key, str(code))
            ended = codes[code] = (self._total.labels(*labels), self._seconds.labels(*labels))
        ended[0].inc()
        ended[1].observe(seconds)
        self._running[function_key] -= 1
        if not self._running[function_key]:
            del self._running[function_key]

    def cold_start(self, function_key: str, seconds: float) -> None:
        self._cold_seconds.labels(function_key).observe(seconds)

    def invocation_count(self, function_key: str) -> int:
        """Invocations through this gateway since it started or the function was deployed."""
        return self._counts.get(function_key, 0)

    def render(self, snapshot: Snapshot) -> bytes:
        """The exposition text; what was counted for functions that are gone is forgotten."""
        functions = snapshot.functions
        for key in [key for key in list(self._counts) if key not in functions]:
            del self._counts[key]
            self._ended.pop(key, None)
            for metric in (self._started, self._total, self._seconds, self._cold_seconds):
                metric.remove_by_labels({"function_name": key})
        for gauge in (self._in_flight, self._services, self._ready):
            gauge.clear()
        for key in functions:
            serving, assigned = snapshot.replicas_of(key)
            self._in_flight.labels(key).set(self._running.get(key, 0))
            self._services.labels(key).set(assigned)
            self._ready.labels(key).set(serving)
        return generate_latest(self.registry)

    def _gauge(self, name: str, what: str) -> Gauge:
        return Gauge(name, what, ["function_name"], registry=self.registry)
