"""Busy instances whose work can go on elsewhere, as columns: an entry for each."""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np

from stoker.placement.estimate import CONTROL_SECONDS, resume_seconds
from stoker.placement.fleet_rows import Floats
from stoker.placement.records import CheckpointRef

_FIRST = 64


class Movables:
    """Not thread-safe. What is told of every entry at once is no more than what moving it takes."""

    def __init__(self) -> None:
        self._entry: dict[str, int] = {}
        self._free: list[int] = []
        self._without_devices: set[str] = set()
        self._count = 0
        self._code: dict[str, int] = {}
        self._row = np.zeros(_FIRST, np.int64)
        self._tokens = np.full(_FIRST, math.inf)
        self._checkpoint = np.zeros(_FIRST, np.int64)
        self._weight_bytes = np.zeros(_FIRST)

    @property
    def all_on_devices(self) -> bool:
        """Whether every one of them needs a device to go on."""
        return not self._without_devices

    def put(
        self,
        instance_id: str,
        row: int,
        checkpoint: CheckpointRef | None,
        tokens: int,
        *,
        needs_device: bool,
    ) -> None:
        entry = self._entry.get(instance_id)
        if entry is None:
            entry = self._entry[instance_id] = self._next()
        if needs_device:
            self._without_devices.discard(instance_id)
        else:
            self._without_devices.add(instance_id)
        self._row[entry] = row
        self._tokens[entry] = tokens
        self._checkpoint[entry] = self._code_of(checkpoint)

    def drop(self, instance_id: str) -> None:
        entry = self._entry.pop(instance_id, None)
        self._without_devices.discard(instance_id)
        if entry is not None:
            self._tokens[entry] = math.inf
            self._row[entry] = 0
            self._free.append(entry)

    def least_seconds(
        self, process_seconds: float, bandwidth: float, near: Collection[str] | None
    ) -> Floats:
        """Of each entry. The process of a start elsewhere takes `process_seconds` at least, and its
        weights come at `bandwidth` bytes per second, unless their digest is `near`; None: every one
        may be.
        """
        loads = self._weight_bytes / bandwidth
        known = self._code.values() if near is None else map(self._code.get, near)
        loads[[code for code in known if code is not None]] = 0.0
        starts = CONTROL_SECONDS + np.maximum(loads, process_seconds)
        moves = resume_seconds(self._tokens[: self._count])
        return np.asarray(moves + starts[self._checkpoint[: self._count]])

    def by_row(self, size: int, seconds: Floats) -> Floats:
        """The least of `seconds` on each row."""
        found = np.full(size, math.inf)
        np.minimum.at(found, self._row[: self._count], seconds)
        return found

    def of(self, instance_id: str, seconds: Floats) -> float:
        """The one of `seconds` that belongs to the instance."""
        return float(seconds[self._entry[instance_id]])

    def _next(self) -> int:
        if self._free:
            return self._free.pop()
        self._count += 1
        if self._count > len(self._row):
            more = (0, len(self._row))
            self._row = np.pad(self._row, more)
            self._tokens = np.pad(self._tokens, more, constant_values=math.inf)
            self._checkpoint = np.pad(self._checkpoint, more)
        return self._count - 1

    def _code_of(self, checkpoint: CheckpointRef | None) -> int:
        digest = checkpoint.digest if checkpoint else ""
        code = self._code.setdefault(digest, len(self._code))
        if code >= len(self._weight_bytes):
            self._weight_bytes = np.pad(self._weight_bytes, (0, len(self._weight_bytes)))
        self._weight_bytes[code] = checkpoint.weight_bytes if checkpoint else 0.0
        return code
