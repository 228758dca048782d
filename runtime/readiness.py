"""Whether a function takes calls, by its own word: it is asked at `com.openfaas.ready.http.path`.

Until it has said so as often as it must, its calls wait; if it says no later, they go elsewhere.
"""

from __future__ import annotations

import asyncio
import sys

from stoker.placement.errors import StokerError
from stoker.placement.spec_probes import Probe
from stoker.runtime.handlers.http import Handler, Request


class Readiness:
    """`holds` is what the function said last, so often that it counts."""

    def __init__(self, probe: Probe, handler: Handler) -> None:
        self._probe = probe
        self._handler = handler
        self._contradictions = 0
        self._said = ""
        self.holds = False

    async def begin(self) -> None:
        """Returns when it is ready for the first time, however long that takes."""
        await asyncio.sleep(self._probe.delay_seconds)
        await self._ask()
        while not self.holds:
            await asyncio.sleep(self._probe.period_seconds)
            await self._ask()

    async def follow(self) -> None:
        """Goes on asking for as long as the function lives."""
        while True:
            await asyncio.sleep(self._probe.period_seconds)
            await self._ask()

    async def _ask(self) -> None:
        probe = self._probe
        refusal = await _refusal(self._handler, probe)
        ready = refusal == ""
        self._contradictions = 0 if ready == self.holds else self._contradictions + 1
        if self._contradictions >= (probe.successes if ready else probe.failures):
            self.holds, self._contradictions = ready, 0
        if ready == self.holds:
            self._say("Ready." if ready else f"Not ready: GET {probe.path}: {refusal}.")

    def _say(self, text: str) -> None:
        if text != self._said:
            self._said = text
            sys.stderr.write(f"{text}\n")


async def _refusal(handler: Handler, probe: Probe) -> str:
    """Why the function is not ready, "" if it is."""
    path, _, query = probe.path.partition("?")
    asked = Request("GET", path, query, (("host", "localhost"), ("x-stoker-probe", "1")), b"")
    try:
        async with asyncio.timeout(probe.timeout_seconds):
            response = await handler(asked)
            if not isinstance(response.body, bytes):
                await response.body.aclose()
    except TimeoutError:
        return f"no answer within {probe.timeout_seconds:g} s"
    except StokerError as error:
        return error.cause
    return "" if response.status < 400 else f"status {response.status}"
