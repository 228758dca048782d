"""How long an idle instance stays, and when one starts ahead of the next request. Pure.

Weights are another matter: they stay in each node's pool until others need the room, and go by
greedy-dual then. So the end of an instance costs a start of its process, hardly ever a load.
"""

from __future__ import annotations

from dataclasses import dataclass

from stoker.placement.estimate import PROCESS_SECONDS
from stoker.placement.histogram import (
    BIN_SECONDS,
    PREWARM_MARGIN,
    SAMPLES_MINIMUM,
    IdleHistogram,
    Window,
)
from stoker.placement.keepalive import worthwhile_seconds

# How long an instance stays of which nothing is known: five minutes.
UNKNOWN_BINS = 5
IDLE_SECONDS_DEFAULT = UNKNOWN_BINS * BIN_SECONDS


@dataclass(frozen=True, slots=True)
class Retention:
    """Seconds since a function's last request ended: an instance stays until `keep_seconds`.

    Where the next request is `due` within a window, one is there in that window as well.
    """

    keep_seconds: float = IDLE_SECONDS_DEFAULT
    due: Window | None = None

    def expects(self, idle_seconds: float, lead_seconds: float = 0.0) -> bool:
        """Whether an instance should be there for a request to come; its start takes the lead."""
        if self.due is None:
            return False
        earliest = self.due.prewarm_seconds / PREWARM_MARGIN
        begin = min(self.due.prewarm_seconds, earliest - lead_seconds)
        return begin <= idle_seconds < self.due.keep_seconds


UNKNOWN = Retention()


def retention(
    idle: IdleHistogram, calls: int, age_seconds: float, start_seconds: float
) -> Retention:
    """What a function's idle times, and its last `calls` within `age_seconds`, speak for.

    An instance stays for its break-even time, which grows with the calls: at its price, one whose
    start takes as long as an unmeasured one is held for five bins. It does not outlast the
    longest idle times, and stays for a bin at least. A function whose idle times agree, and are
    longer than that, is let go at once and started again before its next request.
    """
    unknown_seconds = UNKNOWN_BINS * idle.bin_seconds
    if idle.samples < SAMPLES_MINIMUM:
        return Retention(unknown_seconds)
    price = unknown_seconds / PROCESS_SECONDS
    worthwhile = worthwhile_seconds(calls, age_seconds, start_seconds, 1, price)
    worthwhile = max(idle.bin_seconds, worthwhile)
    window = idle.window()
    # Held for longer than away, an instance would save nothing: such a window tells nothing.
    if window.keep_seconds > 2.0 * window.prewarm_seconds:
        return Retention(min(worthwhile, window.keep_seconds))
    if worthwhile >= window.prewarm_seconds:
        return Retention(window.keep_seconds)
    return Retention(idle.bin_seconds, window)
