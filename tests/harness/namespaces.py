"""Network namespaces on one bridge: nodes with links of their own, shaped to a rate (veth, tbf)."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess

RATE = "500mbit"


class Namespaces:
    """`count` namespaces that reach this one, and each other, through a bridge. Needs root.

    OSError or CalledProcessError where the machine does not allow it.
    """

    def __init__(self, count: int, rate: str = RATE) -> None:
        for program in ("ip", "tc", "nsenter"):
            if shutil.which(program) is None:
                raise FileNotFoundError(f"no {program} on PATH")
        self._mark = f"stk{os.getpid() % 100000}"
        self._subnet = f"10.213.{os.getpid() % 250}"
        self._count = count
        self._bridge = f"{self._mark}b"
        try:
            self._make(rate)
        except BaseException:
            self.close()
            raise

    @property
    def gateway_address(self) -> str:
        """This side's address on the bridge."""
        return f"{self._subnet}.1"

    def address(self, number: int) -> str:
        return f"{self._subnet}.{number + 2}"

    def prefix(self, number: int) -> tuple[str, ...]:
        """What runs a program in the namespace; no mounts are touched, as `ip netns exec` does."""
        return ("nsenter", f"--net=/run/netns/{self._name(number)}")

    def unplug(self, number: int) -> None:
        _run("ip", "link", "set", self._near(number), "down")

    def plug_in(self, number: int) -> None:
        _run("ip", "link", "set", self._near(number), "up")

    def close(self) -> None:
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            _run("ip", "link", "del", self._bridge)
        for number in range(self._count):
            for words in (
                ("link", "del", self._near(number)),
                ("netns", "del", self._name(number)),
            ):
                with contextlib.suppress(OSError, subprocess.CalledProcessError):
                    _run("ip", *words)

    def _make(self, rate: str) -> None:
        _run("ip", "link", "add", self._bridge, "type", "bridge")
        _run("ip", "address", "add", f"{self.gateway_address}/24", "dev", self._bridge)
        _run("ip", "link", "set", self._bridge, "up")
        shape = ("root", "tbf", "rate", rate, "burst", "256kb", "latency", "50ms")
        for number in range(self._count):
            name, near = self._name(number), self._near(number)
            _run("ip", "netns", "add", name)
            within = ("ip", "-n", name)
            _run("ip", "link", "add", near, "type", "veth", "peer", "name", "eth0", "netns", name)
            _run("ip", "link", "set", near, "master", self._bridge, "up")
            _run(*within, "address", "add", f"{self.address(number)}/24", "dev", "eth0")
            _run(*within, "link", "set", "eth0", "up")
            _run(*within, "link", "set", "lo", "up")
            _run("tc", "qdisc", "add", "dev", near, *shape)
            _run("tc", "-n", name, "qdisc", "add", "dev", "eth0", *shape)

    def _name(self, number: int) -> str:
        return f"{self._mark}n{number}"

    def _near(self, number: int) -> str:
        return f"{self._mark}v{number}"


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, timeout=10)
