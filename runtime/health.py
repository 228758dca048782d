"""Asks an instance at `com.openfaas.health.http.path` whether it is well, from outside.

From outside, because an instance that hangs cannot say so. The questions take none of its places
for requests.
"""

from __future__ import annotations

import asyncio

from stoker.placement.errors import InstanceLost, StartFailed, StokerError
from stoker.placement.spec_probes import Probe


async def unhealthy(function: str, probe: Probe, address: str, token: str) -> StokerError:
    """Returns when so many questions in a row as must be had no good answer, with that.

    One that was never well has not started.
    """
    await asyncio.sleep(probe.delay_seconds)
    failures, was_well = 0, False
    while True:
        found = await _answer(probe, address, token)
        if not found:
            failures, was_well = 0, True
        elif (failures := failures + 1) >= probe.failures:
            kind = InstanceLost if was_well else StartFailed
            return kind(
                f"Expected {function} to answer GET {probe.path} with a status below 400 within "
                f"{probe.timeout_seconds:g} s, found {failures} times in a row: {found}.",
                "Read the function's log; see its com.openfaas.health.http annotations.",
            )
        await asyncio.sleep(probe.period_seconds)


async def _answer(probe: Probe, address: str, token: str) -> str:
    """What was wrong with the answer, "" if it was good."""
    try:
        async with asyncio.timeout(probe.timeout_seconds):
            status = await _status(probe.path, address, token)
    except TimeoutError:
        return "no answer"
    except OSError as error:
        return error.strerror or type(error).__name__
    except ValueError:
        return "no HTTP"
    return "" if 100 <= status < 400 else f"status {status}"


async def _status(path: str, address: str, token: str) -> int:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    try:
        lines = (
            f"GET {path} HTTP/1.1",
            f"Host: {address}",
            f"X-Stoker-Token: {token}",
            "X-Stoker-Probe: 1",
            "Connection: close",
        )
        writer.write("\r\n".join([*lines, "", ""]).encode())
        version, status, *_ = (await reader.readline()).split(maxsplit=2)
        if not version.startswith(b"HTTP/1."):
            raise ValueError(version)
        return int(status)
    finally:
        writer.close()
