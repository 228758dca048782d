"""One gateway process for all tests of this folder; each test has functions of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness.gateway import Bench


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    environment = {
        "STOKER_BODY_BYTES_MAXIMUM": "1000000",
        "STOKER_PRIVATE_DESTINATIONS": "127.0.0.1",
        "STOKER_DOMAIN": "fn.example.com",
    }
    bench = Bench(tmp_path_factory.mktemp("gateway") / "state", environment).start()
    yield bench
    bench.stop()


@pytest.fixture
def bench(running: Bench) -> Bench:
    running.place.answer = None
    running.place.asked.clear()
    running.place.together_maximum = 0
    return running
