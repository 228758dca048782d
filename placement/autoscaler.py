"""What the averages of each function's load call for, from one tick to the next. No I/O, no clock.

Bounds: one meter for each function with `kpa` settings, as long as it exists.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from stoker.placement.kpa import TICK_SECONDS, Kpa, Meter, State, decide

GATEWAYS_MAXIMUM = 256


@dataclass(frozen=True, slots=True)
class Autoscaled:
    """The last decision: None instances where a whole window told nothing.

    `inactive_since` is when the load began to call for none. `buffered` says that a burst would
    not find room, so requests are better held in the gateway than given to instances at once.
    """

    desired: int | None = None
    inactive_since: float | None = None
    buffered: bool = True


@dataclass(slots=True)
class _Scaled:
    kpa: Kpa
    meter: Meter
    state: State = field(default_factory=State)
    ticked_at: float | None = None
    last: Autoscaled = field(default_factory=Autoscaled)
    initial: int = 0
    existing: int = 0
    requests: dict[str, int] = field(default_factory=dict)


class Autoscaler:
    """Not thread-safe: its owner's lock guards it. Times are seconds on the caller's clock."""

    def __init__(self) -> None:
        self._functions: dict[str, _Scaled] = {}

    def follow(self, key: str, kpa: Kpa | None, *, deployed: bool) -> None:
        """Take the settings, and begin anew if they changed; `deployed` just now, or known."""
        known = self._functions.get(key)
        if kpa is None:
            self._functions.pop(key, None)
        elif known is None or known.kpa != kpa:
            initial = kpa.initial if deployed else 0
            self._functions[key] = _Scaled(kpa, Meter(kpa.window_seconds), initial=initial)

    def followed(self) -> tuple[str, ...]:
        return tuple(self._functions)

    def forget(self, key: str) -> None:
        self._functions.pop(key, None)

    def hear(self, key: str, load: float, now: float) -> None:
        """So many requests are in flight or wait, at all gateways.

        At zero that is an occasion to decide at once.
        """
        scaled = self._functions.get(key)
        if scaled is None:
            return
        if scaled.kpa.metric == "concurrency":
            scaled.meter.set_level(load, now)
        if load and not scaled.existing:
            self.tick(key, 0, 0, now)

    def count(self, key: str, gateway_id: str, requests: int, now: float) -> None:
        """A gateway has had so many requests in all since it began."""
        scaled = self._functions.get(key)
        if scaled is None or scaled.kpa.metric != "rps":
            return
        # A gateway of which nothing was known may have counted for days.
        since = scaled.requests.get(gateway_id, max(0, requests - 1))
        scaled.requests.pop(gateway_id, None)
        while len(scaled.requests) >= GATEWAYS_MAXIMUM:
            scaled.requests.pop(next(iter(scaled.requests)))
        scaled.requests[gateway_id] = requests
        scaled.meter.add(max(0, requests - since), now)

    def tick(self, key: str, ready: int, existing: int, now: float) -> None:
        """Decide anew if it is time to."""
        scaled = self._functions.get(key)
        if scaled is None:
            return
        scaled.existing = existing
        if existing >= scaled.initial:
            scaled.initial = 0
        early = scaled.ticked_at is not None and now - scaled.ticked_at < TICK_SECONDS
        if early and existing:
            return
        kpa, meter = scaled.kpa, scaled.meter
        stable = meter.average(kpa.window_seconds, now)
        panic = meter.average(kpa.panic_window_seconds, now)
        scaled.ticked_at = now
        if stable is None or panic is None:
            scaled.last = Autoscaled()
            return
        made = decide(kpa, scaled.state, ready, stable, panic, now)
        scaled.state = made.state
        since = None
        if made.desired == 0:
            since = now if scaled.last.inactive_since is None else scaled.last.inactive_since
        scaled.last = Autoscaled(made.desired, since, made.desired == 0 or made.excess_burst < 0)

    def decision(self, key: str) -> Autoscaled | None:
        """The last decision; None for a function without `kpa` settings."""
        scaled = self._functions.get(key)
        if scaled is None:
            return None
        last = scaled.last
        if scaled.initial > (last.desired or 0):
            return Autoscaled(scaled.initial, None, last.buffered)
        return last
