"""Calls a function again and again through gateways, and keeps what came of each call."""

from __future__ import annotations

import http.client
import threading
import time
import urllib.parse
from dataclasses import dataclass, field
from typing import Self

CALL_SECONDS_MAX = 20.0


@dataclass(frozen=True)
class Call:
    """`status` is 0 where the connection failed. Times are monotonic."""

    url: str
    begun_at: float
    seconds: float
    status: int
    error: str = ""


@dataclass
class Load:
    """`per_second` calls to each of the `urls`, from the `with` on to its end."""

    urls: list[str]
    per_second: float = 20.0
    calls: list[Call] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(url,)) for url in self.urls]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    @property
    def failed(self) -> list[Call]:
        return [call for call in self.calls if call.status != 200]

    def share_answered(self) -> float:
        return 1 - len(self.failed) / len(self.calls)

    def percentile_seconds(self, percent: float, since: float = 0.0) -> float:
        seconds = sorted(call.seconds for call in self.calls if call.begun_at >= since)
        return seconds[min(len(seconds) - 1, int(len(seconds) * percent / 100))]

    def _run(self, url: str) -> None:
        split = urllib.parse.urlsplit(url)
        connection = http.client.HTTPConnection(split.netloc, timeout=CALL_SECONDS_MAX)
        next_at = time.monotonic()
        while not self._over.wait(max(0.0, next_at - time.monotonic())):
            next_at = max(next_at + 1 / self.per_second, time.monotonic())
            self.calls.append(_call(connection, url, split.path))
        connection.close()


def _call(connection: http.client.HTTPConnection, url: str, path: str) -> Call:
    begun_at = time.monotonic()
    try:
        connection.request("POST", path, b"", {"Accept": "application/json"})
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException) as error:
        connection.close()
        return Call(url, begun_at, time.monotonic() - begun_at, 0, repr(error))
    error = "" if response.status == 200 else body.decode()
    return Call(url, begun_at, time.monotonic() - begun_at, response.status, error)


class Stream(threading.Thread):
    """Reads the lines of a streaming function until the end."""

    def __init__(self, url: str, count: int) -> None:
        super().__init__(daemon=True)
        self._url, self._count = url, count
        self.lines: list[str] = []
        self.error = ""
        self.start()

    @property
    def complete(self) -> bool:
        return not self.error and self.lines == [str(number) for number in range(self._count)]

    def run(self) -> None:
        split = urllib.parse.urlsplit(self._url)
        connection = http.client.HTTPConnection(split.netloc, timeout=120.0)
        try:
            connection.request("POST", split.path, str(self._count).encode())
            response = connection.getresponse()
            for line in response:
                self.lines.append(line.decode().strip())
            if response.status != 200:
                self.error = f"status {response.status}"
        except (OSError, http.client.HTTPException) as error:
            self.error = repr(error)
        connection.close()
