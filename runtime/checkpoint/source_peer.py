"""Chunks of one checkpoint that another node of the cluster holds.

What a peer sends is trusted no more than its digest shows: nobody asks it for chunks whose digest
is not known, and a load that meets one wrong chunk does not ask that peer again.
"""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from stoker.placement.call_signature import HEADER, call_signature
from stoker.placement.errors import CheckpointMissing, SourceUnavailable, StokerError
from stoker.runtime.checkpoint.manifest import CHUNK_BYTES, Manifest
from stoker.runtime.checkpoint.source_range import (
    FellBehind,
    RangeBroken,
    RangeChanged,
    RangeReader,
    RangeRefused,
    Wanted,
)

PATIENCE_SECONDS = 1.0
FAILURES_MAXIMUM = 2
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class PeerAccess:
    """How this node asks others: the cluster's token, and kept connections past any proxy."""

    token: str
    ranges: RangeReader


class PeerSource:
    """The chunks of `manifest` at the agent that listens at `address`, `host:port`."""

    def __init__(self, address: str, access: PeerAccess, manifest: Manifest) -> None:
        self.address = address
        self._access = access
        self._digest = manifest.digest
        self._bases = {
            weight.name: (base // CHUNK_BYTES, weight.bytes)
            for weight, base in zip(manifest.weights, manifest.file_bases, strict=True)
        }

    def read(self, name: str, offset: int, into: memoryview, seconds: float) -> None:
        """Fill `into` from weight file `name`, each chunk that it touches within `seconds`.

        CheckpointMissing for what the peer has not got; SourceUnavailable for every other failure.
        """
        first, file_bytes = self._bases.get(name, (0, -1))
        if offset + len(into) > file_bytes:
            raise CheckpointMissing(f"Expected bytes of the checkpoint's weights, found {name}.")
        done = 0
        while done < len(into):
            chunk, begin = divmod(offset + done, CHUNK_BYTES)
            piece = into[done : done + CHUNK_BYTES - begin]
            self._read_of_chunk(first + chunk, begin, piece, time.monotonic() + seconds)
            done += len(piece)

    def _read_of_chunk(self, ordinal: int, begin: int, into: memoryview, deadline: float) -> None:
        path = f"/chunks/{self._digest}/{ordinal}"
        url = f"http://{self.address}{path}"
        headers = {HEADER: call_signature(self._access.token, "GET", path)}
        wanted = Wanted(begin, into, None, lambda _: None, lambda _: None, headers)
        try:
            self._access.ranges.read(url, wanted, deadline, expendable=True)
        except RangeRefused as error:
            if error.status == 404:
                raise CheckpointMissing(f"Chunk {ordinal} is not at {self.address}.") from error
            raise self._unavailable(ordinal, error) from error
        except (
            FellBehind,
            RangeBroken,
            RangeChanged,
            http.client.HTTPException,
            OSError,
        ) as error:
            raise self._unavailable(ordinal, error) from error

    def _unavailable(self, ordinal: int, error: Exception) -> SourceUnavailable:
        found = str(error) or type(error).__name__
        return SourceUnavailable(
            f"Expected chunk {ordinal} of {self._digest} from {self.address}, found: {found:.200}.",
            "Check that node's agent; the load takes the chunk from its source instead.",
        )


class Peers:
    """The peers of one load, and what the load has learnt of each. Any thread may call."""

    def __init__(self, sources: Sequence[PeerSource]) -> None:
        self._lock = threading.Lock()
        self._failures = dict.fromkeys(sources, 0)
        self._lacks: set[tuple[PeerSource, int]] = set()
        self._used: dict[int, set[PeerSource]] = {}
        self._spoilt: set[int] = set()
        self.used = False  # whether any peer has sent anything

    def read(
        self, ordinal: int, name: str, offset: int, into: memoryview, bytes_per_second: float
    ) -> bool:
        """Whether a peer has filled `into`, a part of chunk `ordinal`.

        A peer is slow when it takes twice as long as a connection of `bytes_per_second` would.
        """
        peer = self._choose(ordinal)
        if peer is None:
            return False
        try:
            seconds = PATIENCE_SECONDS + 2 * len(into) / bytes_per_second
            peer.read(name, offset, into, seconds)
        except CheckpointMissing:
            with self._lock:
                self._lacks.add((peer, ordinal))
            return False
        except StokerError as error:
            self._failed(peer, error)
            return False
        with self._lock:
            self._used.setdefault(ordinal, set()).add(peer)
            self.used = True
        return True

    def spoilt(self, ordinal: int) -> bool:
        """Chunk `ordinal` did not verify: whether a peer sent some of it, which is now out.

        Nobody but the source is asked for that chunk again.
        """
        with self._lock:
            liars = self._used.pop(ordinal, set())
            self._spoilt.add(ordinal)
            for peer in liars:
                self._failures[peer] = FAILURES_MAXIMUM
        for peer in liars:
            _log.warning("peer_sent_wrong_bytes", peer=peer.address, ordinal=ordinal)
        return bool(liars)

    def _choose(self, ordinal: int) -> PeerSource | None:
        with self._lock:
            if ordinal in self._spoilt:
                return None
            able = [
                peer
                for peer, failures in self._failures.items()
                if failures < FAILURES_MAXIMUM and (peer, ordinal) not in self._lacks
            ]
        return able[ordinal % len(able)] if able else None

    def _failed(self, peer: PeerSource, error: StokerError) -> None:
        with self._lock:
            self._failures[peer] += 1
            given_up = self._failures[peer] == FAILURES_MAXIMUM
        if given_up:
            _log.warning("peer_given_up", peer=peer.address, cause=error.cause)
