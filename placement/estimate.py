"""The predicted time to the first token of a start: the formulas. Pure.

    TTFT = control + max(process, load, room + device) + prefill
    load = max over links of (seconds already queued there + own bytes / bandwidth)

The process comes up while the bytes flow, and all links move at the same time, so only the slowest
of them counts. Bytes wait only behind loads of their own link, and a checkpoint that is already on
its way is not loaded twice. ServerlessLLM's own formula, `q + n / b`, takes the whole checkpoint
over the slowest link of its path, behind all that is queued.

Every function here takes numbers and arrays alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from stoker.placement.records import CheckpointRef, NodeRecord

Source = Literal["dram", "ssd", "peer", "remote"]

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
PEER_BANDWIDTH_DEFAULT = 125e6
# A stream that moved goes on after `a * tokens + b` seconds: its tokens are computed again, and
# the rounds that close the gap take their time. Ten tokens recompute as fast as one is generated.
RESUME_SECONDS_PER_TOKEN = 0.003
RESUME_SECONDS = 0.1
# The DRAM pool is handed out in whole chunks of this size.
CHUNK_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Stages:
    """Seconds of each stage of one start; `source` is where most of the time of its load goes.

    `room` is until its place is free. The links' stages include what is queued before them; then
    the load is `contended`.
    """

    control: float = CONTROL_SECONDS
    room: float = 0.0
    process: float = 0.0
    ssd: float = 0.0
    net: float = 0.0
    device: float = 0.0
    prefill: float = 0.0
    source: Source = "dram"
    ssd_bytes: int = 0
    net_bytes: int = 0
    contended: bool = False


def missing_bytes(weight_bytes: int, dram: Any, ssd: Any) -> tuple[Any, Any]:
    """What a node that holds so much in DRAM and on its SSD must read: (from SSD, from afar)."""
    in_dram = np.minimum(dram, weight_bytes)
    from_ssd = np.maximum(0, np.minimum(ssd, weight_bytes) - in_dram)
    return from_ssd, weight_bytes - in_dram - from_ssd


def process_seconds(node: NodeRecord) -> float:
    """From the order to an instance that can execute, its weights aside."""
    return (node.init_seconds or PROCESS_SECONDS) + unready_seconds(node)


def unready_seconds(node: NodeRecord) -> float:
    """What it takes longer as long as the node has no warm zygote."""
    return 0.0 if node.zygote_ready else ZYGOTE_SECONDS


def overlapped_seconds(
    process: Any, room: Any, ssd: Any, net: Any, device: Any, prefill: float
) -> Any:
    """Seconds to the first token where everything that can flow side by side does."""
    load = np.maximum(np.maximum(ssd, net), room + device)
    return CONTROL_SECONDS + np.maximum(process, load) + prefill


def serial_seconds(room: Any, queued: Any, load: Any, prefill: float) -> Any:
    """The same by ServerlessLLM's estimate: q + n / b, once the room is made."""
    return CONTROL_SECONDS + room + queued + load + prefill


def resume_seconds(tokens: Any) -> Any:
    """How long a migrated stream needs at its new place before it goes on."""
    return RESUME_SECONDS_PER_TOKEN * tokens + RESUME_SECONDS


def pool_bytes(checkpoint: CheckpointRef) -> int:
    """What the checkpoint takes of a node's DRAM pool."""
    return math.ceil(checkpoint.weight_bytes / CHUNK_BYTES) * CHUNK_BYTES
