"""What `stoker up` may be told, and what it hands to its processes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from stoker.placement.errors import BadRequest

DEFAULT_PORT = 8080
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_UNITS |= {f"{unit}i": 1024**power for power, unit in enumerate("kmgt", start=1)}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class UpSettings:
    """Sizes in bytes; None leaves the choice to the agent, which looks at the machine."""

    state: Path
    port: int
    store_url: str
    dram_bytes: int | None = None
    ssd_bytes: int | None = None

    def environment(self, inherited: dict[str, str]) -> dict[str, str]:
        """The environment of every process: the inherited one with our settings over it."""
        own = {
            "STOKER_STATE": str(self.state),
            "STOKER_STORE": self.store_url,
            "STOKER_CLUSTER_TOKEN_FILE": str(self.state / "auth" / "cluster-token"),
            "STOKER_GATEWAY_BIND": f"127.0.0.1:{self.port}",
        }
        if self.dram_bytes is not None:
            own["STOKER_DRAM_BYTES"] = str(self.dram_bytes)
        if self.ssd_bytes is not None:
            own["STOKER_SSD_BYTES"] = str(self.ssd_bytes)
        return inherited | own


def parse_size_bytes(text: str) -> int:
    """`2GiB`, `500MB`, `1073741824` as bytes; BadRequest for anything else."""
    matched = _SIZE.fullmatch(text.strip())
    unit = _UNITS.get(matched.group(2).lower()) if matched else None
    if matched is None or unit is None:
        raise BadRequest(
            f"Expected a size, found {text!r}.", "Write it as 2GiB, 500MB or a number of bytes."
        )
    return int(float(matched.group(1)) * unit)


def default_store_url(state: Path) -> str:
    return f"sqlite://{state / 'store.sqlite'}"
