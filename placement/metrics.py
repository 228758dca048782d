"""What placement says of itself: decisions by kind, their time, and how far predictions are off."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from stoker.placement.plan import Plan
from stoker.placement.why import ErrorShare

_DECISION_BUCKETS = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 1.0)


class PlacementMetrics:
    """Counts from any thread. Labels are kinds and sources, of which there are a few."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._decisions = Counter(
            "placement_decisions",
            "Decisions for one instance, by where its weights are or how its place is made.",
            ["kind"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "placement_decision_seconds",
            "How long deciding took that started, stopped or refused something.",
            buckets=_DECISION_BUCKETS,
            registry=self._registry,
        )
        self._error = Gauge(
            "placement_estimate_error_ratio",
            "How far the predicted start-up times of the last starts were off.",
            ["source", "quantile"],
            registry=self._registry,
        )
        self._starts = Gauge(
            "placement_estimate_starts",
            "How many starts these quantiles are of.",
            ["source"],
            registry=self._registry,
        )

    def decided(self, made: Plan, seconds: float) -> None:
        if made.decisions or made.stops:
            self._seconds.observe(seconds)
        for decision, _ in made.decisions:
            self._decisions.labels(decision.chosen.kind if decision.chosen else "none").inc()

    def render(self, errors: Mapping[str, ErrorShare]) -> bytes:
        """The text that Prometheus reads."""
        for source, error in errors.items():
            self._starts.labels(source).set(error.starts)
            self._error.labels(source, "0.5").set(error.median)
            self._error.labels(source, "0.95").set(error.p95)
        return generate_latest(self._registry)
