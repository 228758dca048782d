"""How many requests of a function may wait in one gateway."""

from __future__ import annotations

from stoker.placement.errors import QueueFull, StokerError, Unavailable
from stoker.placement.records import FunctionRecord

QUEUE_LENGTH_MAXIMUM = 1000


def queue_length_maximum(function: FunctionRecord, serving: int) -> int:
    """With how many waiting the next one is refused, while `serving` instances serve.

    While none does, who waits for the first one is held whatever the function states.
    """
    each = function.scaling.queue_per_instance
    if each is None or not serving:
        return QUEUE_LENGTH_MAXIMUM
    return min(QUEUE_LENGTH_MAXIMUM, each * serving)


def queue_full(function: FunctionRecord, waiting: int, retry_after_seconds: float) -> StokerError:
    """The refusal, as Knative words it to who states its limit."""
    if function.scaling.queue_per_instance is None:
        return QueueFull(
            f"{function.key} has {waiting} requests waiting, the most that may wait.",
            "Send the request again later, or raise com.openfaas.scale.max.",
            retry_after_seconds=retry_after_seconds,
        )
    return Unavailable(
        f"pending request queue full: {function.key} has {waiting} requests waiting.",
        "Send the request again later, or raise its maximum of instances.",
        retry_after_seconds=retry_after_seconds,
    )
