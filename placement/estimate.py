"""The predicted time to the first token of a start. Pure.

    TTFT = control + max(process, load) + prefill
    load = max over tiers of (bytes queued there + own bytes there) / bandwidth of the tier

The process comes up while the bytes flow, and all tiers are read at the same time, so only the
slowest of them counts (the bottleneck `b` in ServerlessLLM's `q + n / b`). Bytes wait only behind
loads of their own tier, and a checkpoint that is already on its way is not loaded twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from stoker.placement.records import (
    CheckpointRef,
    FunctionRecord,
    NodeRecord,
    ResidentRecord,
)

Tier = Literal["dram", "ssd", "remote"]
Residents = Mapping[tuple[str, str], ResidentRecord]

# The request's way to placement, the assignment's way to the node and the connection.
CONTROL_SECONDS = 0.010
# From the fork of a warm zygote to an instance that can execute, where none was measured yet.
PROCESS_SECONDS = 0.5
# What a node without a warm zygote pays on top: interpreter and imports.
ZYGOTE_SECONDS = 4.0
# One short prompt on a CPU node.
PREFILL_SECONDS = 0.1
# Bytes per second, where a node has measured none: a plain NVMe device, and one Gbit/s.
SSD_BANDWIDTH_DEFAULT = 1.5e9
REMOTE_BANDWIDTH_DEFAULT = 125e6


@dataclass(frozen=True, slots=True)
class MissingBytes:
    """Weight bytes that are not in DRAM, by the tier that they must come from."""

    ssd: int = 0
    remote: int = 0


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds to the first token and their parts; `source` is the slowest tier on the path."""

    control_seconds: float
    process_seconds: float
    load_seconds: float
    prefill_seconds: float
    source: Tier

    @property
    def seconds(self) -> float:
        overlapped = max(self.process_seconds, self.load_seconds)
        return self.control_seconds + overlapped + self.prefill_seconds


def missing_bytes(checkpoint: CheckpointRef, node_id: str, residents: Residents) -> MissingBytes:
    """What `node_id` must still read of `checkpoint`, from its SSD and from afar."""
    resident = residents.get((node_id, checkpoint.digest))
    in_dram = min(resident.dram_bytes, checkpoint.weight_bytes) if resident else 0
    on_ssd = min(resident.ssd_bytes, checkpoint.weight_bytes) if resident else 0
    from_ssd = max(0, on_ssd - in_dram)
    return MissingBytes(ssd=from_ssd, remote=checkpoint.weight_bytes - in_dram - from_ssd)


def estimate(
    function: FunctionRecord,
    node: NodeRecord,
    residents: Residents,
    loading: Iterable[CheckpointRef] = (),
) -> Estimate:
    """Predict a start of `function` on `node`, where `loading` are the loads not yet done."""
    process_seconds = node.init_seconds or PROCESS_SECONDS
    if not node.zygote_ready:
        process_seconds += ZYGOTE_SECONDS
    if function.checkpoint is None:
        return Estimate(CONTROL_SECONDS, process_seconds, 0.0, 0.0, "dram")
    own = missing_bytes(function.checkpoint, node.node_id, residents)
    ahead = {ref.digest: ref for ref in loading if ref.digest != function.checkpoint.digest}
    queue = [missing_bytes(ref, node.node_id, residents) for ref in ahead.values()]
    ssd_bandwidth = node.ssd_bandwidth or SSD_BANDWIDTH_DEFAULT
    remote_bandwidth = node.remote_bandwidth or REMOTE_BANDWIDTH_DEFAULT
    tiers: list[tuple[float, Tier]] = [(0.0, "dram")]
    if own.ssd:
        tiers.append(((own.ssd + sum(load.ssd for load in queue)) / ssd_bandwidth, "ssd"))
    if own.remote:
        queued = sum(load.remote for load in queue)
        tiers.append(((own.remote + queued) / remote_bandwidth, "remote"))
    load_seconds, source = max(tiers)
    return Estimate(CONTROL_SECONDS, process_seconds, load_seconds, PREFILL_SECONDS, source)
