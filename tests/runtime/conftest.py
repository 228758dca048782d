from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness.workers import ZygoteProcess


@pytest.fixture(scope="session")
def zygote() -> Iterator[ZygoteProcess]:
    """One zygote for all tests of its workers: its imports take seconds."""
    made = ZygoteProcess()
    yield made
    made.close()
