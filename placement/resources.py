"""What one instance of a function may use at most: the `limits` of its spec.

Quantities are written as Kubernetes writes them: `memory: 128Mi`, `cpu: 500m`, `pids: "64"`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from stoker.placement.errors import BadSpec
from stoker.placement.spec_fields import refuse

LIMIT_NAMES = ("memory", "cpu", "pids")
MEMORY_BYTES_MAXIMUM = 1 << 50
CORES_MAXIMUM = 4096
PIDS_MAXIMUM = 1 << 22

_QUANTITY = re.compile(
    r"(\d{1,15}(?:\.\d{1,9})?|\.\d{1,9})(m|[kMGTP]|[KMGTP]i|[eE]\d{1,2})?", re.ASCII
)
_SUFFIXES = {
    "": Decimal(1),
    "m": Decimal("0.001"),
    **{suffix: Decimal(1000) ** power for power, suffix in enumerate("kMGTP", 1)},
    **{f"{suffix}i": Decimal(1024) ** power for power, suffix in enumerate("KMGTP", 1)},
}


@dataclass(frozen=True, slots=True)
class Limits:
    """None: no limit was stated. `cores` may be a fraction; `pids` counts threads as well."""

    memory_bytes: int | None = None
    cores: float | None = None
    pids: int | None = None

    @property
    def stated(self) -> tuple[str, ...]:
        """The names of those that are limited."""
        values = (self.memory_bytes, self.cores, self.pids)
        return tuple(name for name, value in zip(LIMIT_NAMES, values, strict=True) if value)

    def threads(self, cores: int) -> int:
        """How many threads compute at once on a node with so many cores."""
        return cores if self.cores is None else min(cores, math.ceil(self.cores))


def parse_limits(limits: Mapping[str, str] | None) -> Limits:
    """The limits of a spec; BadSpec for a name or a quantity that is none."""
    stated = limits or {}
    for name in stated:
        if name not in LIMIT_NAMES:
            raise BadSpec(
                f"Expected {', '.join(LIMIT_NAMES)} in limits, found {name!r:.60}.",
                f"Remove limits.{name!s:.60}; nothing would act on it.",
            )
    memory = _quantity(stated, "memory", "bytes such as 128Mi", 1, MEMORY_BYTES_MAXIMUM)
    cores = _quantity(stated, "cpu", "cores such as 500m or 2", Decimal("0.01"), CORES_MAXIMUM)
    pids = _quantity(stated, "pids", "a number of processes and threads", 1, PIDS_MAXIMUM)
    return Limits(
        memory_bytes=None if memory is None else int(memory),
        cores=None if cores is None else float(cores),
        pids=None if pids is None else int(pids),
    )


def _quantity(
    limits: Mapping[str, str], name: str, expected: str, least: Decimal | int, most: int
) -> Decimal | None:
    if name not in limits:
        return None
    matched = _QUANTITY.fullmatch(limits[name])
    if matched is not None:
        number, suffix = Decimal(matched[1]), matched[2] or ""
        factor = _SUFFIXES.get(suffix) or Decimal(10) ** int(suffix[1:])
        if least <= number * factor <= most:
            return number * factor
    return refuse(f"limits.{name}", f"{expected}, from {least} to {most}", limits[name])
