"""What a client is told when no node can take an instance."""

from __future__ import annotations

from stoker.placement.errors import NoCapacity
from stoker.placement.plan import Plan

CAPACITY_RETRY_SECONDS = 5.0
# How many nodes' reasons an error names.
REFUSALS_MAXIMUM = 8


def no_capacity(function_key: str, made: Plan | None) -> NoCapacity:
    """The error, with what the nodes lack by the plan that was made."""
    shortages = made.shortages if made else ()
    shortage = next((s for s in shortages if s.function == function_key), None)
    refusals = shortage.refusals(REFUSALS_MAXIMUM) if shortage else ()
    if shortage is None or not refusals:
        return NoCapacity(
            f"Expected a node to start {function_key}, found none registered.",
            "Start a node agent, or wait for it to join.",
            retry_after_seconds=CAPACITY_RETRY_SECONDS,
        )
    reasons = "; ".join(f"node {node_id}: {why}" for node_id, why in refusals)
    return NoCapacity(
        f"Expected a node with room for {function_key}, found none ({reasons}).",
        "Try again later, add a node or lower the minimum of other functions."
        if shortage.may_pass
        else "Add a node that has what the others lack, or ask for less.",
        retry_after_seconds=CAPACITY_RETRY_SECONDS if shortage.may_pass else None,
    )
