"""A node that is put into every state a start can begin from, by its public interface alone.

Two things no interface does, so that processes are killed, as a crash would: forgetting the
templates, which end with their zygote, and ending the processes that are parked.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import psutil
from http_client import Answer, Failed, chat, embed
from starts import ANSWER_TOKENS, FUNCTIONS, MESSAGES, TEXT

ROOT = Path(__file__).resolve().parents[2]
sys.path += [str(ROOT / "benchmarks" / name) for name in ("loader", "demo")]

from conditions import drop, prime  # noqa: E402 (beside this benchmark)
from node import SETTLE_SECONDS, Node, wait_for  # noqa: E402

PRIME_BYTES = 512 << 20
# A node on which nothing has started for 2 s parks a process for what served last.
PARK_SECONDS = 5.0
STATE_SECONDS_MAXIMUM = 60.0
ZYGOTE = "stoker.runtime.zygote"


def private_dirty_bytes(pid: int) -> int:
    """Bytes of the pages that this process has written and no other has mapped."""
    rows = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(row.split()[1]) * 1024 for row in rows if row.startswith("Private_Dirty:"))


class ColdNode(Node):
    """`absent` starts it anew with nothing but the source; the rest of the states follow."""

    def deploy(self) -> None:
        for function in FUNCTIONS:
            self.command("deploy", "-f", str(ROOT / "functions" / function / "stack.yaml"))

    def absent(self) -> None:
        """Nothing on this machine but the node itself, started a moment ago."""
        self.empty_everything()

    def bring(self, function: str, start: str) -> None:
        """Into the state from which the next request is a start of that kind."""
        if start == "s3":
            return
        if start == "warm":
            self.ask(function)
            # As long a quiet time as before any other start: idleness alone costs a request some.
            time.sleep(PARK_SECONDS + SETTLE_SECONDS)
            return
        self.scale_to_zero(function)
        self.ask(function)
        time.sleep(PARK_SECONDS)
        self.scale_to_zero(function)
        if start == "ssd":
            self.wait_for_copies()
            self._client().call("POST", f"/system/evict-function/{function}", {})
            drop(path for path in (self.state / "ssd").rglob("*") if path.is_file())
        elif start == "dram":
            self.end_parked()
        elif start == "zygote_only":
            self.restart_zygote()
        time.sleep(SETTLE_SECONDS)

    def sample(self, function: str, **fields: Any) -> Answer:
        """One measured request."""
        prime(PRIME_BYTES)
        return self.ask(function, **fields)

    def ask(self, function: str, **fields: Any) -> Answer:
        if function == "embed":
            return embed(self.port, {"model": function, "input": TEXT}, self.authorization())
        body = {
            "model": function,
            "messages": MESSAGES,
            "max_tokens": ANSWER_TOKENS,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **fields,
        }
        return chat(self.port, body, self.authorization())

    def authorization(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._password()}"}

    def scale_to_zero(self, function: str) -> None:
        """No instance."""
        if self._runs(function):
            body = {"serviceName": function, "replicas": 0}
            self._client().call("POST", f"/system/scale-function/{function}", body)
        wait_for(lambda: not self._runs(function), STATE_SECONDS_MAXIMUM, f"{function} to be at 0")

    def restart_zygote(self) -> None:
        """Another zygote, which has imported everything and started nothing."""
        for function in FUNCTIONS:
            self.scale_to_zero(function)
        os.kill(self._zygote().pid, signal.SIGKILL)
        wait_for(lambda: not self._zygote_ready(), STATE_SECONDS_MAXIMUM, "the zygote's end")
        wait_for(self._zygote_ready, STATE_SECONDS_MAXIMUM, "another zygote")

    def end_parked(self) -> None:
        """No process stands by; the templates stay."""
        for parked in self._parked():
            parked.kill()

    def zygote_memory(self) -> dict[str, int]:
        """Bytes that the zygote, and a process parked beside it, wrote and share with nobody.

        Clean pages of library files are left out: they are the page cache's, which takes them
        back when it must, whoever has mapped them last.
        """
        parked = [private_dirty_bytes(process.pid) for process in self._parked()]
        if not parked:
            raise Failed("No process is parked.")
        zygote = private_dirty_bytes(self._zygote().pid)
        return {"zygote_private": zygote, "parked_private": max(parked)}

    def wait_for_copies(self) -> None:
        """Until the SSD holds all that the memory does."""

        def copied() -> bool:
            nodes = self._client().call("GET", "/system/nodes")
            held = [resident for node in nodes for resident in node["residents"]]
            return bool(held) and all(r["ssd_bytes"] >= r["dram_bytes"] for r in held)

        wait_for(copied, STATE_SECONDS_MAXIMUM, "the SSD to hold every checkpoint")

    def _runs(self, function: str) -> bool:
        return any(each["function"].startswith(f"{function}.") for each in self.instances())

    def _zygote_ready(self) -> bool:
        return any(node["zygote_ready"] for node in self._client().call("GET", "/system/nodes"))

    def _parked(self) -> list[psutil.Process]:
        """What the zygote forked and is no instance."""
        serving = {instance["pid"] for instance in self.instances()}
        return [child for child in self._zygote().children() if child.pid not in serving]

    def _zygote(self) -> psutil.Process:
        """Of the processes of that name the one that is no other's child: the rest it forked."""
        assert self._process is not None
        for process in psutil.Process(self._process.pid).children(recursive=True):
            parent = process.parent()
            if ZYGOTE in process.cmdline() and parent and ZYGOTE not in parent.cmdline():
                return process
        raise Failed("The node has no zygote.")
